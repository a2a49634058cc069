//! `{% generation %}` ... `{% endgeneration %}` mark the assistant's text for training; here they must do nothing.

/// Turns the marks into `{% if true %}` and `{% endif %}`, white-space control kept.
pub(super) fn neutralize(source: &str) -> String {
    let mut parts = source.split("{%");
    let mut result = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        result.push_str("{%");
        result.push_str(&neutralize_block(part).unwrap_or_else(|| part.to_owned()));
    }
    result
}

/// Takes what follows `{%`; `None` when it is another block.
fn neutralize_block(part: &str) -> Option<String> {
    let (inside, after) = part.split_once("%}")?;
    let word = inside.trim_start_matches(['-', '+']).trim_end_matches(['-', '+']).trim();
    let instead = match word {
        "generation" => "if true",
        "endgeneration" => "endif",
        _ => return None,
    };
    Some(format!("{}%}}{after}", inside.replacen(word, instead, 1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_marks_change() {
        let cases = [
            ("a{% generation %}b{% endgeneration %}c", "a{% if true %}b{% endif %}c"),
            ("{%- generation -%}b{%+ endgeneration +%}", "{%- if true -%}b{%+ endif +%}"),
            ("{%generation%}{{ generation }}", "{%if true%}{{ generation }}"),
            ("{% if generation %}{% endif %} {% open", "{% if generation %}{% endif %} {% open"),
        ];
        for (source, expected) in cases {
            assert_eq!(neutralize(source), expected);
        }
    }
}
