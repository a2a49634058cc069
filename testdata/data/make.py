#!/usr/bin/env python3
"""Writes the same four rows as JSON Lines and, by pyarrow 26.0.1, as Parquet files of two kinds.

usage: make.py (needs `pip install pyarrow==26.0.1`)
"""

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet

HERE = Path(__file__).parent
TURNS = [
    [("user", "one"), ("assistant", "1 and more")],
    [("system", "Be short."), ("user", "two, \"quoted\""), ("assistant", "2\nlines of it"), ("user", "Ünï?"),
     ("assistant", "Ja, 日本")],
    [("user", "three"), ("assistant", "3 is the answer")],
    [("user", "four"), ("assistant", "4 is the answer")],
]


def main():
    rows = [{"id": number, "messages": [{"role": role, "content": content} for role, content in turns]}
            for number, turns in enumerate(TURNS)]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (HERE / "chat.jsonl").write_text(lines, encoding="utf-8")
    table = pyarrow.Table.from_pylist(rows)
    pyarrow.parquet.write_table(table, HERE / "chat-snappy.parquet", compression="snappy")
    pyarrow.parquet.write_table(table, HERE / "chat-zstd.parquet", compression="zstd", row_group_size=3,
                                use_dictionary=False, data_page_version="2.0")


if __name__ == "__main__":
    main()
