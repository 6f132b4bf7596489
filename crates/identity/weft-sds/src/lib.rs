//! The workload side of identity: key, CSR, rotation, and the secrets they give.
