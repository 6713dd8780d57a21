"""OpenAI's HTTP interface on the engine (decoding/batching.py): one thread decodes, asyncio talks."""
