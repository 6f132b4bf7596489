//! Typed specs of Istio's kinds. Each struct is the `spec` of the kind of that name, in the newest API; all served versions
//! of a kind read into it.
