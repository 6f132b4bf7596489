//! ADS: delta and state-of-the-world, ACK tracking, pushes.
