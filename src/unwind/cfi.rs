//! Call frame information.
