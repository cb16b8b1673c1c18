//! Culvert lab.
