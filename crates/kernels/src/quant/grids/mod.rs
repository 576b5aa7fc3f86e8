//! Codebooks of the IQ formats.
