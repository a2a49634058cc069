//! Streams as plain loops in double precision, written from the formulas and sharing no code with the crate.

use std::collections::BTreeMap;

use forestream_burn::Segment;
use forestream_model::streams::{AdapterConfig, Projection, StreamIdentity, StreamPosition};
use forestream_model::{Checkpoint, DecoderConfig, TokenId};

type Values = BTreeMap<String, Vec<f64>>;

/// Segments to run, with everything of the base model in double precision.
pub(crate) struct Reference<'a> {
    config: &'a DecoderConfig,
    adapter: &'a AdapterConfig,
    draft_vocabulary: Vec<TokenId>,
    /// By layer with streams; empty where they keep all.
    inner_features: &'a [Vec<u32>],
    segments: &'a [Segment],
    base: Values,
}

impl<'a> Reference<'a> {
    pub(crate) fn new(
        checkpoint: &'a Checkpoint,
        adapter: &'a AdapterConfig,
        (draft_vocabulary, inner_features): (&[TokenId], &'a [Vec<u32>]),
        segments: &'a [Segment],
    ) -> Self {
        let config = checkpoint.config();
        let mut base = Values::new();
        let mut names = vec!["model.embed_tokens.weight".to_owned(), "model.norm.weight".to_owned()];
        names.push("lm_head.weight".to_owned());
        for layer in 0..config.num_hidden_layers {
            let name = |suffix: &str| format!("model.layers.{layer}.{suffix}");
            names.extend(["input_layernorm.weight", "post_attention_layernorm.weight"].map(name));
            names.extend(["self_attn.q_norm.weight", "self_attn.k_norm.weight"].map(name));
            for projection in Projection::ALL {
                names.extend(["weight", "bias"].map(|kind| name(&format!("{}.{kind}", projection.path()))));
            }
        }
        for name in names.into_iter().filter(|name| checkpoint.has(name)) {
            let values = checkpoint.weight(&name).unwrap().to_f32().into_iter().map(f64::from).collect();
            base.insert(name, values);
        }
        let draft_vocabulary = match draft_vocabulary {
            [] => (0..config.vocab_size as TokenId).collect(),
            ids => ids.to_vec(),
        };
        Self { config, adapter, draft_vocabulary, inner_features, segments, base }
    }

    /// Logits of all streams for these trained values.
    pub(crate) fn logits(&self, trained: &Values) -> Vec<f64> {
        let mut logits = Vec::new();
        for segment in self.segments {
            for position in 0..segment.boundary.len() / self.config.hidden_size {
                let states = self.position(trained, segment, position);
                for (stream, state) in states.into_iter().enumerate() {
                    logits.extend(self.head(trained, segment.tokens[position + stream], state));
                }
            }
        }
        logits
    }

    /// Logits of the early exit at all positions.
    pub(crate) fn early_exit(&self, trained: &Values) -> Vec<f64> {
        let width = self.config.hidden_size;
        let boundary = self.segments.iter().flat_map(|segment| segment.boundary.chunks_exact(width));
        let logits = |state: &[f32]| {
            let state: Vec<f64> = state.iter().map(|&x| f64::from(x)).collect();
            let mut state = self.norm(&state, Some("model.norm.weight"));
            let inner = matvec(&trained["early_exit.down_proj.weight"], &state);
            add(&mut state, &matvec(&trained["early_exit.up_proj.weight"], &inner));
            self.read(&state)
        };
        boundary.flat_map(logits).collect()
    }

    /// Final states of all streams of one position.
    fn position(&self, trained: &Values, segment: &Segment, position: usize) -> Vec<Vec<f64>> {
        let (config, streams) = (self.config, &self.adapter.streams);
        let width = config.hidden_size;
        let mut rows: Vec<Vec<f64>> = (0..streams.num_streams)
            .map(|stream| {
                let boundary = &segment.boundary[position * width..][..width];
                let mut row: Vec<f64> = boundary.iter().map(|&x| f64::from(x)).collect();
                if let Some(embeddings) = trained.get("stream_embeddings") {
                    add(&mut row, &embeddings[stream * width..][..width]);
                }
                row
            })
            .collect();
        if streams.token_conditioning {
            let condition = matvec(&trained["token_conditioning.weight"], &self.embedding(segment.tokens[position]));
            for row in &mut rows {
                add(row, &condition);
            }
        }
        let first = config.num_hidden_layers - streams.num_msa_layers;
        for layer in first..config.num_hidden_layers {
            self.layer(trained, layer, &mut rows, (segment, position, layer - first));
        }
        rows.iter().map(|row| self.norm(row, Some("model.norm.weight"))).collect()
    }

    fn layer(&self, trained: &Values, layer: usize, rows: &mut [Vec<f64>], place: (&Segment, usize, usize)) {
        let config = self.config;
        let (segment, position, plane) = place;
        let (dim, group) = (config.head_dim, config.num_attention_heads / config.num_key_value_heads);
        let context = segment.keys[plane].len() / (config.num_key_value_heads * dim);
        let at = segment.first_position + position;
        let project = |x: &[f64], projection| self.project(trained, layer, projection, x);
        let name = |suffix: &str| format!("model.layers.{layer}.{suffix}");
        let mut own: Vec<[Vec<f64>; 3]> = Vec::new();
        for (stream, row) in rows.iter_mut().enumerate() {
            let rotary = match self.adapter.streams.position {
                StreamPosition::Following => at + stream + 1,
                StreamPosition::Anchor => at,
            };
            let normalized = self.norm(row, Some(&name("input_layernorm.weight")));
            let turned = |projection, norm: &str| -> Vec<f64> {
                let heads = project(&normalized, projection);
                let turn = |head: &[f64]| {
                    let head = if config.has_qk_norm { self.norm(head, Some(&name(norm))) } else { head.to_vec() };
                    self.rotate(&head, rotary)
                };
                heads.chunks_exact(dim).flat_map(turn).collect()
            };
            own.push([
                turned(Projection::QProj, "self_attn.q_norm.weight"),
                turned(Projection::KProj, "self_attn.k_norm.weight"),
                self.turn_values(project(&normalized, Projection::VProj), stream),
            ]);
            let mut attended = Vec::new();
            for head in 0..config.num_attention_heads {
                let query = &own[stream][0][head * dim..][..dim];
                let kv = head / group;
                let main = |planes: &[Vec<f32>], key: usize| -> Vec<f64> {
                    planes[plane][(kv * context + key) * dim..][..dim].iter().map(|&x| f64::from(x)).collect()
                };
                let of_stream = |which: usize, m: usize| own[m][which][kv * dim..][..dim].to_vec();
                let mut pairs: Vec<(Vec<f64>, Vec<f64>)> =
                    (0..=at).map(|key| (main(&segment.keys, key), main(&segment.values, key))).collect();
                pairs.extend((0..=stream).map(|m| (of_stream(1, m), of_stream(2, m))));
                attended.extend(attend(query, &pairs));
            }
            add(row, &project(&attended, Projection::OProj));
            let normalized = self.norm(row, Some(&name("post_attention_layernorm.weight")));
            let gate = project(&normalized, Projection::GateProj);
            let up = project(&normalized, Projection::UpProj);
            let inner: Vec<f64> = gate.iter().zip(&up).map(|(&gate, up)| silu(gate) * up).collect();
            let down = project(&inner, Projection::DownProj);
            add(row, &down);
        }
    }

    fn project(&self, trained: &Values, layer: usize, projection: Projection, x: &[f64]) -> Vec<f64> {
        let path = format!("{layer}.{}", projection.path());
        let mut projected = matvec(&self.weight(layer, projection), x);
        if let Some(bias) = self.base.get(&format!("model.layers.{path}.bias")) {
            add(&mut projected, bias);
        }
        let main = self.adapter.main_lora.as_ref().map(|main| &main.lora);
        for (prefix, lora) in [("main.layers", main), ("layers", self.adapter.lora.as_ref())] {
            let Some(a) = trained.get(&format!("{prefix}.{path}.lora_A.weight")) else { continue };
            let lora = lora.unwrap();
            let change = matvec(&trained[&format!("{prefix}.{path}.lora_B.weight")], &matvec(a, x));
            let scale = f64::from(lora.alpha) / lora.rank as f64;
            projected.iter_mut().zip(change).for_each(|(to, x)| *to += scale * x);
        }
        projected
    }

    /// A weight of the base, without the inner features that streams do not keep.
    fn weight(&self, layer: usize, projection: Projection) -> Vec<f64> {
        let weight = &self.base[&format!("model.layers.{layer}.{}.weight", projection.path())];
        let first = self.config.num_hidden_layers - self.adapter.streams.num_msa_layers;
        let Some(features) = self.inner_features.get(layer - first) else { return weight.clone() };
        let (width, inner) = (self.config.hidden_size, self.config.intermediate_size);
        match projection {
            Projection::GateProj | Projection::UpProj => {
                features.iter().flat_map(|&row| weight[row as usize * width..][..width].to_vec()).collect()
            }
            Projection::DownProj => {
                let kept = |row: &[f64]| features.iter().map(|&col| row[col as usize]).collect::<Vec<_>>();
                weight.chunks_exact(inner).flat_map(kept).collect()
            }
            _ => weight.clone(),
        }
    }

    fn head(&self, trained: &Values, parent: TokenId, mut state: Vec<f64>) -> Vec<f64> {
        if self.adapter.streams.sampler_size.is_some() {
            let mut inner = matvec(&trained["sampler.down_proj.weight"], &self.embedding(parent));
            inner = inner.into_iter().map(silu).collect();
            add(&mut state, &matvec(&trained["sampler.up_proj.weight"], &inner));
        }
        self.read(&state)
    }

    /// Logits of a final state over the draft vocabulary.
    fn read(&self, state: &[f64]) -> Vec<f64> {
        let table = self.base.get("lm_head.weight").unwrap_or(&self.base["model.embed_tokens.weight"]);
        let row = |&token: &TokenId| &table[token as usize * state.len()..][..state.len()];
        self.draft_vocabulary.iter().map(|token| dot(row(token), state)).collect()
    }

    fn embedding(&self, token: TokenId) -> Vec<f64> {
        let width = self.config.hidden_size;
        self.norm(&self.base["model.embed_tokens.weight"][token as usize * width..][..width], None)
    }

    fn norm(&self, x: &[f64], weight: Option<&str>) -> Vec<f64> {
        let scale = (dot(x, x) / x.len() as f64 + f64::from(self.config.rms_norm_eps)).sqrt().recip();
        match weight {
            Some(name) => x.iter().zip(&self.base[name]).map(|(x, weight)| x * scale * weight).collect(),
            None => x.iter().map(|x| x * scale).collect(),
        }
    }

    /// Value rotation, by complex multiplication: channel `i` is the real part, channel `i + half` the imaginary one.
    fn turn_values(&self, mut values: Vec<f64>, stream: usize) -> Vec<f64> {
        let StreamIdentity::ValueRotation { angle } = self.adapter.streams.identity else { return values };
        let (sine, cosine) = (f64::from(angle) * (stream as f64 + 1.0)).sin_cos();
        for head in values.chunks_exact_mut(self.config.head_dim) {
            let (real, imaginary) = head.split_at_mut(self.config.head_dim / 2);
            for (real, imaginary) in real.iter_mut().zip(imaginary) {
                (*real, *imaginary) = (*real * cosine - *imaginary * sine, *real * sine + *imaginary * cosine);
            }
        }
        values
    }

    fn rotate(&self, head: &[f64], position: usize) -> Vec<f64> {
        let half = head.len() / 2;
        let mut rotated = head.to_vec();
        for (i, frequency) in self.config.rope.frequencies(head.len()).into_iter().enumerate() {
            let (sine, cosine) = (position as f64 * frequency).sin_cos();
            rotated[i] = head[i] * cosine - head[i + half] * sine;
            rotated[i + half] = head[i + half] * cosine + head[i] * sine;
        }
        rotated
    }
}

fn attend(query: &[f64], pairs: &[(Vec<f64>, Vec<f64>)]) -> Vec<f64> {
    let scale = (query.len() as f64).sqrt().recip();
    let weights: Vec<f64> = pairs.iter().map(|(key, _)| (dot(query, key) * scale).exp()).collect();
    let sum: f64 = weights.iter().sum();
    let mut attended = vec![0.0; query.len()];
    for (weight, (_, value)) in weights.iter().zip(pairs) {
        attended.iter_mut().zip(value).for_each(|(to, x)| *to += weight / sum * x);
    }
    attended
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn matvec(matrix: &[f64], x: &[f64]) -> Vec<f64> {
    matrix.chunks_exact(x.len()).map(|row| dot(row, x)).collect()
}

fn add(to: &mut [f64], x: &[f64]) {
    to.iter_mut().zip(x).for_each(|(to, x)| *to += x);
}

fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}
