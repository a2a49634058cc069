//! Files that are there as a whole or not at all.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::ModelError;

/// Replaces files that belong together: each is written under a temporary name, and they get their own when all of them are
/// safely on the disk. A full disk leaves the former ones whole, and so does a program that is killed before the first renaming.
///
/// # Errors
/// When a file cannot be written.
pub fn write_whole(files: &[(PathBuf, Vec<u8>)]) -> Result<(), ModelError> {
    let partial = |path: &Path| path.with_extension("partial");
    let write = |path: &Path, bytes: &[u8]| {
        let mut file = File::create(partial(path))?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    let rename = |path: &Path| std::fs::rename(partial(path), path);
    let written = files.iter().map(|(path, bytes)| write(path, bytes).map_err(ModelError::write(path)));
    let renamed = files.iter().map(|(path, _)| rename(path).map_err(ModelError::write(path)));
    written.chain(renamed).collect::<Result<(), _>>().inspect_err(|_| {
        for (path, _) in files {
            let _ = std::fs::remove_file(partial(path)); // nothing half-written stays behind
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_belong_together_are_replaced_together_or_not_at_all() {
        let directory = tempfile::tempdir().unwrap();
        let paths = ["one.json", "two.json"].map(|name| directory.path().join(name));
        let files = |text: &str| paths.each_ref().map(|path| (path.clone(), text.as_bytes().to_vec()));
        let contents = || paths.each_ref().map(|path| std::fs::read_to_string(path).unwrap());
        write_whole(&files("former")).unwrap();
        let in_the_way = directory.path().join("two.partial");
        std::fs::create_dir(&in_the_way).unwrap();
        let error = write_whole(&files("new")).unwrap_err();
        assert!(matches!(&error, ModelError::Write { path, .. } if *path == paths[1]), "{error}");
        assert_eq!(contents(), ["former", "former"]);
        std::fs::remove_dir(&in_the_way).unwrap();
        write_whole(&files("new")).unwrap();
        assert_eq!(contents(), ["new", "new"]);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 2, "no partial file is left");
    }
}
