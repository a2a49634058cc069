"""Golden logits of a GGUF model with its weights dequantized, computed by transformers in float32.

The file that comes out is small: the input token ids and, for the last few positions, the 64 largest logits (ids and
values) and the norm of all logits. Run by `cargo xtask golden --smollm2 FILE`; usage: gguf_logits.py MODEL.gguf OUTPUT.json
"""

import hashlib
import json
import sys
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

PROMPT = (
    "<|im_start|>user\nName three rivers of Europe and say where each of them ends.<|im_end|>\n"
    "<|im_start|>assistant\nThe Danube flows into the Black Sea, the Rhine"
)
NUM_POSITIONS = 4
NUM_LARGEST = 64


def main():
    file, output = Path(sys.argv[1]).resolve(), Path(sys.argv[2])
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    input_ids = tokenizer(PROMPT, add_special_tokens=False)["input_ids"]
    model = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        logits = model(torch.tensor([input_ids])).logits[0]
    positions = []
    for position in range(len(input_ids) - NUM_POSITIONS, len(input_ids)):
        largest = logits[position].topk(NUM_LARGEST)
        positions.append({
            "position": position,
            "norm": round(logits[position].norm().item(), 4),
            "ids": largest.indices.tolist(),
            "values": [round(value, 5) for value in largest.values.tolist()],
        })
    golden = {
        "file": file.name,
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "made_with": f"torch {torch.__version__}, transformers {transformers.__version__}",
        "prompt": PROMPT,
        "input_ids": input_ids,
        "vocab_size": logits.shape[1],
    }
    lines = [f' "{key}": {json.dumps(value)},' for key, value in golden.items()]
    rows = ",\n".join(f"  {json.dumps(position)}" for position in positions)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text("{\n" + "\n".join(lines) + f'\n "positions": [\n{rows}\n ]\n}}\n')
    print(f"{file.name}: {len(input_ids)} tokens, most likely next: {tokenizer.decode(positions[-1]['ids'][0])!r}")


if __name__ == "__main__":
    main()
