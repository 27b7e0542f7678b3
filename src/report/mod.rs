//! The one view model. Everything that is printed is first here; nothing here reads a target.
