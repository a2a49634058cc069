//! Data by the name of a dataset on the Hugging Face Hub: `owner/name`, `owner/name:split`, `owner/name:config/split`.
//!
//! The Hub keeps every dataset as Parquet files of its own making; the first file of the split is taken. Must not know
//! what is inside.

use std::path::{Path, PathBuf};

use hf_hub::{Cache, Repo, RepoType};

use super::hub::Choice;
use super::{Hub, Network, PullError, Reporter, SourceError};

/// The branch that the Hub writes its Parquet files to.
const REVISION: &str = "refs/convert/parquet";
/// The split that is taken where none is named.
const DEFAULT_SPLIT: &str = "train";
/// A configuration of this name is taken first where none is named.
const DEFAULT_CONFIG: &str = "default";
/// Names that end like this are files.
const FILE_EXTENSIONS: &[&str] = &["csv", "json", "jsonl", "ndjson", "parquet", "tsv", "txt"];

/// The data of this machine, and of the Hub.
#[derive(Clone, Debug, Default)]
pub struct DatasetStore {
    /// Whether the Hub may be asked.
    pub network: Network,
    /// The Hub.
    pub hub: Hub,
}

impl DatasetStore {
    /// The file that `data` means: itself, unless it is the name of a dataset and no file.
    ///
    /// # Errors
    /// If the Hub did not give the dataset.
    pub fn locate(&self, data: &Path, reporter: &mut dyn Reporter) -> Result<PathBuf, PullError> {
        let Some(name) = DatasetName::parse(data).filter(|_| !data.exists()) else { return Ok(data.to_owned()) };
        if let Some(path) = name.cached() {
            return Ok(path);
        }
        self.fetch(name, data, reporter)
            .map_err(|problem| PullError::Dataset { name: data.display().to_string(), problem })
    }

    fn fetch(&self, name: DatasetName, data: &Path, reporter: &mut dyn Reporter) -> Result<PathBuf, SourceError> {
        self.network.check(Hub::LABEL)?;
        reporter.say(&format!("pulling the dataset {} from {}", data.display(), Hub::LABEL));
        let repo = name.repo();
        let choose = move |files: &[String]| name.choose(files).map(Choice::File);
        self.hub.fetch_chosen(repo, Box::new(choose), reporter)
    }
}

/// A dataset, and which part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct DatasetName {
    repository: String,
    config: Option<String>,
    split: String,
}

impl DatasetName {
    /// Reads a name; `None` if it can only be a path.
    fn parse(data: &Path) -> Option<Self> {
        let text = data.to_str()?;
        let (repository, part) = text.split_once(':').map_or((text, None), |(left, right)| (left, Some(right)));
        let is_word = |word: &str| {
            !word.is_empty()
                && !word.starts_with('.')
                && word.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        };
        let (owner, name) = repository.split_once('/')?;
        let is_file = Path::new(name).extension().is_some_and(|e| FILE_EXTENSIONS.iter().any(|known| e == *known));
        if is_file || !is_word(owner) || !is_word(name) {
            return None;
        }
        let part = part.unwrap_or(DEFAULT_SPLIT);
        let (config, split) = part.split_once('/').map_or((None, part), |(config, split)| (Some(config), split));
        Some(Self { repository: repository.to_owned(), config: config.map(str::to_owned), split: split.to_owned() })
    }

    fn repo(&self) -> Repo {
        Repo::with_revision(self.repository.clone(), RepoType::Dataset, REVISION.to_owned())
    }

    /// The first file of the split, if an earlier run has fetched it.
    fn cached(&self) -> Option<PathBuf> {
        let config = self.config.as_deref().unwrap_or(DEFAULT_CONFIG);
        Cache::from_env().repo(self.repo()).get(&format!("{config}/{}/0000.parquet", self.split))
    }

    /// The first file of the split among `files`, which are called `config/split/number.parquet`.
    fn choose(&self, files: &[String]) -> Result<String, SourceError> {
        let mut tables: Vec<[&str; 3]> = files
            .iter()
            .filter(|file| file.ends_with(".parquet"))
            .filter_map(|file| file.split('/').collect::<Vec<_>>().try_into().ok())
            .collect();
        tables.sort_unstable_by_key(|[config, split, number]| (*config != DEFAULT_CONFIG, *config, *split, *number));
        let is_wanted = |[config, split, _]: &&[&str; 3]| {
            // of very large datasets the Hub converts the beginning
            let is_split = split.strip_prefix("partial-").unwrap_or(split) == self.split;
            is_split && self.config.as_deref().is_none_or(|wanted| wanted == *config)
        };
        if let Some(table) = tables.iter().find(is_wanted) {
            return Ok(table.join("/"));
        }
        tables.dedup_by_key(|[config, split, _]| (*config, *split));
        let parts: Vec<String> = tables.iter().map(|[config, split, _]| format!("{config}/{split}")).collect();
        let wanted = self.config.iter().chain([&self.split]).map(String::as_str).collect::<Vec<_>>().join("/");
        Err(SourceError::NotFound(format!("it has no {wanted}, but {}; write name:config/split", parts.join(", "))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Option<[String; 3]> {
        let DatasetName { repository, config, split } = DatasetName::parse(Path::new(text))?;
        Some([repository, config.unwrap_or_default(), split])
    }

    #[test]
    fn names_of_datasets_are_told_from_paths() {
        let cases = [
            ("a/b", ["a/b", "", "train"]),
            ("a-1/b.2:test", ["a-1/b.2", "", "test"]),
            ("a/b:c/test", ["a/b", "c", "test"]),
        ];
        for (text, expected) in cases {
            assert_eq!(name(text), Some(expected.map(str::to_owned)), "{text}");
        }
        for path in ["a", "/a/b", "./b", "../b", "a/b/c", "a/b.jsonl", "a/b.csv", "a/b.parquet", "a b/c", "/"] {
            assert_eq!(name(path), None, "{path}");
        }
    }

    #[test]
    fn the_first_table_of_a_split_is_chosen() {
        let files = ["README.md", "b/train/0000.parquet", "default/train/0001.parquet", "default/train/0000.parquet"];
        let files: Vec<String> =
            files.into_iter().chain(["default/partial-test/0000.parquet"]).map(str::to_owned).collect();
        let choose = |text: &str| DatasetName::parse(Path::new(text)).unwrap().choose(&files);
        assert_eq!(choose("a/b").unwrap(), "default/train/0000.parquet");
        assert_eq!(choose("a/b:b/train").unwrap(), "b/train/0000.parquet");
        assert_eq!(choose("a/b:test").unwrap(), "default/partial-test/0000.parquet");
        let error = choose("a/b:c/dev").unwrap_err().to_string();
        assert!(error.contains("no c/dev, but default/partial-test, default/train, b/train"), "{error}");
    }
}
