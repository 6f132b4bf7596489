//! Traffic redirection by nftables.
