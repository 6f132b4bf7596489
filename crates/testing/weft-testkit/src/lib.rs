//! Fakes that are real servers, builders, assert_eventually.
