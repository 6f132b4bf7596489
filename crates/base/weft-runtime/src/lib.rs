//! Process life cycle: signals, readiness, drain, task groups, log set-up.
