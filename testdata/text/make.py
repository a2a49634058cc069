#!/usr/bin/env python3
"""Makes the tokenizer fixtures of this directory, and the 1 MB corpus for the full comparison.

    pip install tokenizers==0.23.3 transformers==5.23.0 sentencepiece==0.2.3 protobuf gguf==0.19.0 django==5.2.8
    python make.py fixtures                       # everything that is committed beside this script
    python make.py corpus OUT.txt                 # 1 MB of real text found in the installed packages; not committed
    python make.py vocabulary MODEL.gguf OUT.json # the tokenizer metadata of a GGUF file as `GgufVocabulary` JSON
    python make.py golden MODEL.gguf NAME         # `NAME/ids.json`: the ids of the sample with a real vocabulary
    python make.py ids VOCABULARY.json TEXT.txt   # the ids that Hugging Face's tokenizers give, one per line

The vocabularies are trained on the sample below. The ids are Hugging Face's: `tokenizers` with the pre-tokenizer
definition published for each model family, and transformers' `LlamaTokenizer` for SentencePiece.
"""

import json
import pathlib
import random
import sys
import tempfile

HERE = pathlib.Path(__file__).parent

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
CHAT_ML_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]

# ---------------------------------------------------------------------------------------------------------------- sample

SAMPLE = [
    "",
    " ",
    "a",
    "Hello, world!",
    "The boat left at dawn; by noon it was out of sight. Nobody waved.",
    "It's what they'd've said, isn't it? We'll see. I'M SURE YOU'RE RIGHT, THEY'LL COME.",
    "Don\u2019t mind the curly apostrophe, it\u2019s fine.",
    "In 2026 the 3 teams scored 1234567 points (12.5%), i.e. -0.75e-10 of 10^9.",
    "Prices: $1,299.99, \u20ac49, \u00a3 7, \u00a55000, 3\u00bd cups, x\u00b2 + y\u00b3, \u2167, \u2460\u2461, \uff11\uff12\uff13, \u0661\u0662\u0663.",
    "snake_case camelCase PascalCase SCREAMING_CASE kebab-case dotted.name v1.2.3-rc.4",
    "https://example.org/path/to?query=1&other=%20#part and someone+tag@example.org",
    "one  two   three    four     five      six",
    "   leading, trailing   ",
    "\n",
    "\n\n\n",
    "line\nline\n\nparagraph\n\n\n  indented\n\ttab\n \t mixed \t \n",
    "windows\r\nline\r\n\r\nends\rold mac\r\r",
    "a \n b \n\n c\n \nd",
    "tab\tseparated\t\tvalues\t\n\t\t\tdeep",
    "no\u00a0break\u00a0\u00a0space, thin\u2009space, ideographic\u3000space, line\u2028separator, para\u2029graph, next\u0085line",
    "zero\u200bwidth, joiner\u200dhere, mark\ufeff, soft\u00adhyphen, vertical\x0btab, form\x0cfeed, figure\u2007space",
    "control \x00\x01\x02 \x1b[31mred\x1b[0m \x7f done",
    "caf\u00e9 cafe\u0301 \u00c5ngstr\u00f6m A\u030angstro\u0308m na\u00efve r\u00e9sum\u00e9 Stra\u00dfe \u0130stanbul \ufb01ne \u01c6",
    "\u1112\u1161\u11ab\u1100\u1173\u11af \ud55c\uae00 \ud55c\uad6d\uc5b4 \ubb38\uc7a5\uc744 \ud558\ub098 \uc501\ub2c8\ub2e4.",
    "\u4eca\u5929\u5929\u6c14\u5f88\u597d\uff0c\u6211\u4eec\u53bb\u6cb3\u8fb9\u8d70\u8d70\u5427\u3002\u4f60\u89c9\u5f97\u600e\u4e48\u6837\uff1f",
    "\u4eca\u65e5\u306f\u5929\u6c17\u304c\u3044\u3044\u306e\u3067\u3001\u5ddd\u307e\u3067\u6b69\u304d\u307e\u3057\u3087\u3046\u3002\u30ab\u30bf\u30ab\u30ca\u3082\u3001\u534a\u89d2\uff76\uff85\u3082\u3002",
    "\u041f\u0440\u0438\u0432\u0435\u0442! \u0421\u0435\u0433\u043e\u0434\u043d\u044f \u0445\u043e\u0440\u043e\u0448\u0430\u044f \u043f\u043e\u0433\u043e\u0434\u0430, \u043f\u043e\u0439\u0434\u0451\u043c \u043a \u0440\u0435\u043a\u0435?",
    "\u039a\u03b1\u03bb\u03b7\u03bc\u03ad\u03c1\u03b1 \u03ba\u03cc\u03c3\u03bc\u03b5, \u03c4\u03b9 \u03ba\u03ac\u03bd\u03b5\u03b9\u03c2;",
    "\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd, \u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645\u060c \u06a9\u06cc\u0627 \u062d\u0627\u0644 \u06c1\u06d2\u061f",
    "\u0928\u092e\u0938\u094d\u0924\u0947 \u0926\u0941\u0928\u093f\u092f\u093e, \u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35\u0e0a\u0e32\u0e27\u0e42\u0e25\u0e01, \u0bb5\u0ba3\u0b95\u0bcd\u0b95\u0bae\u0bcd",
    "\U0001f600\U0001f603 \U0001f44d\U0001f3fd \U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 \U0001f1e9\U0001f1ea\U0001f1ef\U0001f1f5 \u2764\ufe0f \U0001f9d1\U0001f3ff\u200d\U0001f680!!!",
    "\U0001d4d7\U0001d4ee\U0001d4f5\U0001d4f5\U0001d4f8 \U0001d7d8\U0001d7d9 \u2211\u2208\u2115 \u2192 \u21d2 \u2260 \u221a2 \u00b5m \u2126 \u212b \U00020000\U0002a6d6 \ue000\U000f0000",
    "wow!!! what?!?! ... --- === *** ___ ~~~ ((([[[{{{<<<>>>}}}]]])))",
    "\"quoted\" 'single' \u00ab guillemets \u00bb \u201ccurly\u201d `code` ``` fence ```",
    "<|im_start|>user\nIs this <|im_end|> special? <s> </s> <unk> <tool> <|endoftext|>",
    "\u2581low\u2581line\u2581 \u0120gee \u010a <0x0A> <0x41> [INST] <<SYS>>",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "0000000000000000000000001111111111111111",
    "def mean(values: list[float]) -> float:\n    \"\"\"Return the mean.\"\"\"\n    if not values:\n"
    "        raise ValueError('no values')\n    return sum(values) / len(values)\n",
    "fn main() {\n    let total: u64 = (1..=10).map(|n| n * n).sum();\n    println!(\"{total:>8}\");\n}\n",
    "#include <stdio.h>\n\nint main(void)\n{\n\tfor (int i = 0; i < 3; ++i)\n\t\tprintf(\"%d\\n\", i);\n\treturn 0;\n}\n",
    "SELECT name, COUNT(*) AS n FROM boats WHERE length >= 7.5 GROUP BY name ORDER BY n DESC;\n",
    "{\"name\": \"Ada\", \"tags\": [\"x\", \"y\"], \"nested\": {\"ok\": true, \"none\": null}}",
    "<ul class=\"list\">\n  <li>One &amp; two</li>\n  <!-- three -->\n</ul>\n",
    "$ git log --oneline | head -n 5 && echo \"$HOME\" > /tmp/out.txt 2>&1\n",
    "| name | boats |\n|:-----|------:|\n| Ada  |    12 |\n\n- [x] done\n- [ ] open\n\n## Heading ##\n",
    "\\begin{align}\n  \\frac{\\partial u}{\\partial t} &= \\alpha \\nabla^2 u \\\\\n\\end{align}\n",
    "^(?:[a-z0-9]+(?:-[a-z0-9]+)*)$ /\\d{3}-\\d{4}/gi",
    "The word count of this sentence is not important, but its rhythm is: short, short, long, and then a pause \u2014 like "
    "that. Rain fell on the roof all night; in the morning the gutters were full of leaves and the cat was asleep.",
]


def random_strings():
    """Strings of characters drawn from awkward pools, the same on every run."""
    generator = random.Random(20261123)
    pools = [
        "ab \n",
        " \t\n\r\u00a0\u3000",
        "a1 .'\n",
        "\u00e9e\u0301\u0308 o",
        "\u4f60\u597d\u3002a ",
        "\U0001f600\U0001f3fd\u200d\ufe0f a",
        "sdtmlrevSDTMLREV' ",
        "0123456789\u0663\u2167\u00bd ,.",
        "_-+=<>|$%^&*()[]{}\"'` \n",
        "\u0000\u0007\u001f\u007f\u0085\u200b\u2028 x",
    ]
    pools.append("".join(pools))
    return ["".join(generator.choice(pool) for _ in range(generator.randint(5, 60))) for pool in pools for _ in range(4)]


# ------------------------------------------------------------------------------------------------------------- tokenizers


def byte_level_tokenizer(pre, model=None):
    """The tokenizer of a model family: the pre-tokenizer published in its `tokenizer.json` around `model`."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    tokenizer = Tokenizer(model or models.BPE(ignore_merges=pre == "llama-bpe"))
    steps = {
        "gpt-2": lambda: [pre_tokenizers.ByteLevel(add_prefix_space=False)],
        "smollm": lambda: [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ],
        "qwen2": lambda: [
            pre_tokenizers.Split(Regex(QWEN2), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ],
        "llama-bpe": lambda: [
            pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ],
    }[pre]()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def from_vocabulary(vocabulary):
    """Hugging Face's tokenizer for a GGUF vocabulary of byte-level BPE."""
    from tokenizers import AddedToken, models

    vocab = {token: index for index, token in enumerate(vocabulary["tokens"])}
    merges = [tuple(rule.split(" ")) for rule in vocabulary["merges"]]
    model = models.BPE(vocab, merges, ignore_merges=vocabulary["pre"] == "llama-bpe")
    tokenizer = byte_level_tokenizer(vocabulary["pre"], model)
    typed = list(zip(vocabulary["tokens"], vocabulary["token_types"]))
    tokenizer.add_special_tokens([token for token, kind in typed if kind == 3])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token, kind in typed if kind == 4])
    return tokenizer


def golden(tokenizer):
    """The ids of every sample, with special tokens in the text as such and as plain text.

    `decoded` has the text of the plain ids where it is not the sample.
    """
    encode = encoder(tokenizer)
    texts = SAMPLE + random_strings()
    plain = [encode(text, True) for text in texts]
    decoded = [tokenizer.decode(ids, skip_special_tokens=False) for ids in plain]
    return {
        "parsed": [encode(text, False) for text in texts],
        "plain": plain,
        "decoded": {index: text for index, text in enumerate(decoded) if text != texts[index]},
    }


def encoder(tokenizer):
    def encode(text, plain):
        tokenizer.encode_special_tokens = plain
        return tokenizer.encode(text, add_special_tokens=False).ids

    return encode


def write(path, value):
    path = HERE / path
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")


def make_byte_level(pre):
    from tokenizers import pre_tokenizers, processors, trainers

    tokenizer = byte_level_tokenizer(pre)
    trainer = trainers.BpeTrainer(
        vocab_size=560,
        special_tokens=CHAT_ML_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SAMPLE, trainer)
    tokenizer.add_tokens(["<tool>"])
    if pre == "llama-bpe":
        bos = "<|endoftext|>"
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, 0)])
    model = json.loads(tokenizer.to_str())["model"]
    tokens = [tokenizer.id_to_token(index) for index in range(tokenizer.get_vocab_size())]
    kinds = {"<tool>": 4, **dict.fromkeys(CHAT_ML_TOKENS, 3)}
    vocabulary = {
        "model": "gpt2",
        "pre": pre,
        "tokens": tokens,
        "token_types": [kinds.get(token, 1) for token in tokens],
        "merges": [" ".join(rule) for rule in model["merges"]],
        "bos": 0,
        "eos": 2,
    }
    write(f"{pre}/vocabulary.json", vocabulary)
    write(f"{pre}/tokenizer.json", json.loads(tokenizer.to_str()))
    write(f"{pre}/tokenizer_config.json", {"bos_token": "<|endoftext|>", "eos_token": {"content": "<|im_end|>"}})
    write(f"{pre}/ids.json", golden(tokenizer))


def sentencepiece_tokenizer(proto):
    """The tokenizer published with Llama 2, around another SentencePiece model."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
    from transformers.convert_slow_tokenizer import generate_merges

    vocab = {piece.piece: index for index, piece in enumerate(proto.pieces)}
    scores = {piece.piece: piece.score for piece in proto.pieces}
    special = [piece.piece for piece in proto.pieces if piece.type in (2, 3)]
    added = [piece.piece for piece in proto.pieces if piece.type == 4]
    merges = generate_merges(vocab, scores, skip_tokens=special + added)
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in added])
    return tokenizer


def make_sentencepiece():
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2

    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        lines = [line for text in SAMPLE for line in text.split("\n") if line and "\0" not in line]
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_prefix=str(folder / "tokenizer"),
            model_type="bpe",
            vocab_size=640,
            character_coverage=0.98,
            byte_fallback=True,
            split_digits=True,
            allow_whitespace_only_pieces=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            user_defined_symbols=["<tool>"],
            minloglevel=2,
        )
        proto = sentencepiece_model_pb2.ModelProto()
        proto.ParseFromString((folder / "tokenizer.model").read_bytes())
        processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    tokenizer = sentencepiece_tokenizer(proto)
    write("llama/tokenizer.json", json.loads(tokenizer.to_str()))
    write("llama/tokenizer_config.json", {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"})
    vocabulary = {
        "model": "llama",
        "tokens": [piece.piece for piece in proto.pieces],
        "scores": [piece.score for piece in proto.pieces],
        "token_types": [piece.type for piece in proto.pieces],
        "bos": 1,
        "eos": 2,
        "unknown": 0,
    }
    write("llama/vocabulary.json", vocabulary)
    ids = golden(tokenizer)
    for text, expected in zip(SAMPLE + random_strings(), ids["plain"]):
        if "<tool>" not in text:  # Hugging Face puts a space after an added token, SentencePiece does not.
            assert processor.encode(text) == expected, (text, processor.encode(text), expected)
    write("llama/ids.json", ids)


# ------------------------------------------------------------------------------------------------------ chat templates

CHAT_TEMPLATES = {
    "turns": "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] | trim }}"
    "{{ eos_token }}\n{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}\n",
    "blocks": """{# Newlines after blocks and spaces before them must go. #}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] %}
    {%- set messages = messages[1:] %}
{%- endif %}
{% for message in messages %}
    {% if (message.role == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must alternate: ' ~ message.role ~ ' at ' ~ loop.index) }}
    {% endif %}
  [{{ loop.index }}/{{ loop.length }}{% if loop.last %}, last{% endif %}] {{ message.content }}
    {%- if system is defined and loop.first %} (system: {{ system }}){% endif %}

{% endfor %}
""",
    "python": """{%- for message in messages -%}
    {%- if message.content is string -%}
        {%- set parts = message.content.strip().split('</think>') -%}
        {{- message.role.upper() + ': ' + parts[-1].lstrip('\n') -}}
        {%- if message.content.startswith('He') and not message.content.endswith('?') %} !{% endif -%}
    {%- else -%}
        {%- for part in message.content -%}
            {%- if part.type == 'image' -%}{%- continue -%}{%- endif -%}
            {{- part['text'] | default('?') -}}
        {%- endfor -%}
    {%- endif -%}
    {{- '; ' if not loop.last else '.' -}}
{%- endfor -%}
{{- ' ' ~ (messages | map(attribute='role') | unique | join(',')) ~ ' ' ~ messages | length -}}
{%- if enable_thinking is defined and enable_thinking is false %} quiet{% endif -%}
{%- if tools is none %} no tools{% endif -%}
""",
    "tools": """{%- set state = namespace(count=0) -%}
{%- if tools -%}
TOOLS
{%- for tool in tools %}
{%- set state.count = state.count + 1 %}

{{ tool | tojson }}
{{ tool.function.parameters.properties.items() | list | length }} {{ tool.function.parameters | tojson(indent=2) }}
{%- endfor -%}
{%- endif %} {{ state.count }}
{% for message in messages %}
{%- if message.tool_calls is defined and message.tool_calls -%}
{%- for call in message.tool_calls -%}
{{ '<call>' + call.function.name + ' ' + (call.function.arguments | tojson) + '</call>' }}
{%- endfor -%}
{%- else -%}
{{ message.role }}={{ message.content }}
{% endif -%}
{% endfor -%}
{%- if documents %}{{ documents[0].title }}{% endif -%}
""",
    "generation": "{% for message in messages %}{% if message.role == 'assistant' %}{% generation %}{{ message.content }}"
    "{% endgeneration %}{% else %}{{ message.content }}|{% endif %}{% endfor %}",
    "macro": """{%- macro turn(role, content='') -%}
<{{ role }}>{{ content }}</{{ role }}>
{%- endmacro -%}
{%- for message in messages -%}
{%- if loop.index > 3 -%}{%- break -%}{%- endif -%}
{{ turn(message.role, message.content) }}
{% if loop.previtem is defined and loop.previtem.role == message.role %}again{% endif %}
{%- endfor -%}
{{ messages[0] is sequence }} {{ 'text' is sequence }} {{ none is iterable }} {{ unknown is iterable }}
{{ '\u00e9 \U0001f40c <' | tojson }} {{ '\u00e9 \U0001f40c <' | tojson(ensure_ascii=True) }}
{{ 'x' * 3 }} {{ '%s-%d' | format('a', 3) }} {{ 7 // 2 }} {{ messages[-1].content[:4] }} {{ [1, 'a', none, true] }}
""",
}

TALK = [
    {"role": "system", "content": "Be brief & <kind>. "},
    {"role": "user", "content": "  Hello,\n\"world\"?  "},
    {"role": "assistant", "content": "<think>\nhm\n</think>\nHi there \U0001f40c"},
    {"role": "user", "content": "How are you?"},
]
TOOL = {
    "type": "function",
    "function": {
        "name": "get_tide",
        "description": "Height of the tide, in <metres> & 'feet'",
        "parameters": {
            "type": "object",
            "properties": {"zone": {"type": "string", "enum": ["\u00e9", "b"]}, "at": {"type": "number", "minimum": -0.5}},
            "required": [],
        },
    },
}
CALLS = [
    {"role": "user", "content": "Tide?"},
    {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "get_tide", "arguments": {"zone": "b", "at": 1}}}]},
    {"role": "tool", "content": "1.5"},
]
PARTS = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}, {"type": "text"}]}]


def make_chat():
    from transformers.utils.chat_template_utils import _compile_jinja_template

    inputs = [
        {"messages": TALK, "add_generation_prompt": True},
        {"messages": TALK[1:2], "add_generation_prompt": False, "enable_thinking": False},
        {"messages": CALLS, "add_generation_prompt": True, "tools": [TOOL, TOOL], "documents": [{"title": "Tides"}]},
        {"messages": PARTS, "add_generation_prompt": True},
        {"messages": TALK[1:2] * 2, "add_generation_prompt": False},
    ]
    cases = []
    for name, template in CHAT_TEMPLATES.items():
        compiled = _compile_jinja_template(template)
        for given in inputs:
            variables = {"tools": None, "documents": None, "bos_token": "<s>", "eos_token": "</s>", **given}
            try:
                result = {"text": compiled.render(**variables)}
            except Exception as error:
                result = {"error": str(error)}
            cases.append({"template": name, "inputs": given, **result})
    write("chat.json", {"templates": CHAT_TEMPLATES, "cases": cases})


# --------------------------------------------------------------------------------------------------------- real text


def corpus(path):
    """1 MB of real text: documentation, code, translations, emoji, and odd white space between the pieces."""
    import django

    library = pathlib.Path(json.__file__).parent.parent
    locales = pathlib.Path(django.__file__).parent / "conf" / "locale"
    english = [library / "pydoc_data" / "topics.py"]
    code = sorted(library.glob("[a-h]*.py"))
    languages = ["zh_Hans", "zh_Hant", "ja", "ko", "ru", "ar", "hi", "th", "el", "he", "de", "fr", "vi"]
    translations = [locales / language / "LC_MESSAGES" / "django.po" for language in languages]
    emoji = [library / "site-packages" / "pip" / "_vendor" / "rich" / "_emoji_codes.py"]
    shares = [(english, 350_000), (code, 450_000), (translations, 300_000), (emoji, 60_000)]
    generator = random.Random(1)
    white = [" ", "\n", "\t", "\r\n", "\u00a0", "\u3000", "\u2028", "\u2009", "\x0b", "\x0c", "\u0085", "\u200b"]
    pieces = []
    for files, share in shares:
        each = share // len(files) if len(files) < 20 else share
        for file in files:
            text = file.read_text(encoding="utf-8")[:each]
            if file.suffix == ".po":
                text = "\n".join(line.partition('"')[2].rstrip('"') for line in text.split("\n") if line.startswith("msg"))
            share -= len(text.encode())
            pieces.append(text)
            if share <= 0:
                break
    words = [chunk for text in pieces for chunk in split(text, generator)]
    generator.shuffle(words)
    odd = lambda: "".join(generator.choice(white) for _ in range(generator.randint(0, 4)))
    text = "".join(word + odd() for word in words).encode()[:1_000_000].decode(errors="ignore")
    with open(path, "w", encoding="utf-8", newline="") as file:
        file.write(text)
    print(len(text.encode()), "bytes")


def split(text, generator):
    """Pieces of 200 to 2,000 characters."""
    while text:
        size = generator.randint(200, 2000)
        yield text[:size]
        text = text[size:]


def read_gguf(path):
    from gguf import GGUFReader

    fields = GGUFReader(path).fields
    names = {
        "ggml.model": "model",
        "ggml.pre": "pre",
        "ggml.tokens": "tokens",
        "ggml.scores": "scores",
        "ggml.token_type": "token_types",
        "ggml.merges": "merges",
        "ggml.bos_token_id": "bos",
        "ggml.eos_token_id": "eos",
        "ggml.eot_token_id": "eot",
        "ggml.eom_token_id": "eom",
        "ggml.unknown_token_id": "unknown",
        "ggml.padding_token_id": "padding",
        "ggml.add_bos_token": "add_bos",
        "ggml.add_eos_token": "add_eos",
        "ggml.add_space_prefix": "add_space_prefix",
        "chat_template": "chat_template",
    }
    found = {name: fields.get("tokenizer." + key) for key, name in names.items()}
    return {name: field.contents() for name, field in found.items() if field}


def main(command, *arguments):
    if command == "fixtures":
        write("sample.json", SAMPLE + random_strings())
        for pre in ["gpt-2", "smollm", "qwen2", "llama-bpe"]:
            make_byte_level(pre)
        make_sentencepiece()
        make_chat()
    elif command == "corpus":
        corpus(arguments[0])
    elif command == "vocabulary":
        pathlib.Path(arguments[1]).write_text(json.dumps(read_gguf(arguments[0]), ensure_ascii=False))
    elif command == "golden":
        write(f"{arguments[1]}/ids.json", golden(from_vocabulary(read_gguf(arguments[0]))))
    elif command == "ids":
        vocabulary = json.loads(pathlib.Path(arguments[0]).read_text())
        with open(arguments[1], encoding="utf-8", newline="") as file:
            print(*encoder(from_vocabulary(vocabulary))(file.read(), True), sep="\n")
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main(*sys.argv[1:] or [""])
