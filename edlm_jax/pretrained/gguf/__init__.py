"""GGUF files, as llama.cpp's tools write them, read as the Hugging Face directories that they were made from.

    file.py        the file, checked whole: its metadata, and where its tensors lie
    config.py      metadata -> config.json
    tokenizer.py   metadata -> tokenizer.json, tokenizer_config.json, chat_template.jinja
    directory.py   a directory with these: what reads a model reads it like any other
    checkpoint.py  the tensors, dequantised as they are sliced
"""
