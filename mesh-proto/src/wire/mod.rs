//! Bytes ⇄ values: one file per format, each opening with the picture of its bytes.
