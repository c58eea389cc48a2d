//! Errors of the local model: they name the file, and the way out.

use std::path::{Path, PathBuf};

/// Why a checkpoint could not be read, written or run.
#[derive(Debug, thiserror::Error)]
pub enum TorchError {
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// A file does not say what it should.
    #[error("{}: {message}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what can be done.
        message: String,
    },
    /// libtorch refused.
    #[error("libtorch: {0}")]
    Torch(#[from] tch::TchError),
    /// The options do not fit the machine.
    #[error("{0}")]
    Options(String),
}

impl TorchError {
    pub(crate) fn file(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> TorchError {
        let path = path.into();
        move |source| TorchError::File { path, source }
    }

    pub(crate) fn content(path: &Path, message: impl ToString) -> TorchError {
        TorchError::Content { path: path.to_owned(), message: message.to_string() }
    }
}
