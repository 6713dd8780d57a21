"""What `edlm bench` prints of its numbers."""


def _show_decode(result):
    print(f"{result['dtype']}, products by {result['products']}")
    sizes = result["tokens_per_second"]
    print(f"{'tokens/s':32}" + "".join(f"{f'batch {size}':>13}" for size in sizes) + "  tokens/forward  columns  as AR")
    for name in next(iter(sizes.values())):
        rates = "".join(f"  {sizes[size][name]:11.1f}" for size in sizes)
        known = name in result["columns"] and (
            f"  {result['tokens_per_forward'][name]:14.2f}{result['columns'][name]:9}{result['prompts_as_ar'][name]:7}"
        )
        print(f"{name:32}" + rates + (known or ""))
    print("of a batch's time, what rows wait for its slowest one")
    for name in result["tokens_per_forward"]:
        print(f"{name:32}" + "".join(f"{result['waiting'][size][name]:13.1%}" for size in sizes))
    for width, seconds in result["forward_seconds"].items():
        ratio = result["forward_ratio"][width]
        print(f"a forward of {width} columns: {1e3 * seconds:.3f} ms, {ratio:.2f} times one of 1")
    if "transformers" in result:
        print(f"transformers: {result['transformers']}")


def _show_serve(result):
    for clients, ways in result["serving"].items():
        head = f"{f'clients: {clients}':32}{'tokens/s':>11}{'tokens/forward':>16}"
        print(head + "  ms to the first token, and of each further one (half, and 19 of 20, take less)")
        kinds = ("first_token_p50", "first_token_p95", "token_p50", "token_p95")
        for name, found in ways.items():
            times = "".join(f"{1e3 * found[kind]:10.2f}" for kind in kinds)
            print(f"{name:32}{found['tokens_per_second']:11.1f}{found['tokens_per_forward']:16.2f}{times}")


def _show_forward(result):
    print(f"{result['dtype']}, products by {result['products']}")
    stream, products = result["stream_bytes_per_second"], result["product_flops_per_second"]
    print(f"{result['weight_bytes'] / 2**20:.1f} MiB of weights, {result['cached_columns']} columns cached")
    print(f"memory {stream / 1e9:.1f} GB/s, products {products / 1e9:.0f} GFLOP/s")
    for rows, by_columns in result["forward_ms"].items():
        memory, product = result["memory_ms"][rows], result["product_ms"][rows]
        print(f"rows: {rows}\n  {'columns':>8}{'ms':>10}{'ratio':>8}{'least':>10}  bound by")
        for columns, ms in by_columns.items():
            ratio, least = result["forward_ratio"][rows][columns], max(memory, product[columns])
            bound = "memory" if memory >= product[columns] else "products"
            print(f"  {columns:>8}{ms:10.3f}{ratio:8.2f}{least:10.3f}  {bound}, {ms / least:.2f} times that")


def _show_device(result):
    print(f"{result['platform']}: {', '.join(result['devices'])}")
    print("  ".join(f"{name} {version}" for name, version in result["versions"].items()))


def _show_kernels(result):
    for dtype, by_pattern in result["errors"].items():
        print(f"{dtype}: {'right' if result['right'][dtype] else 'WRONG'}, at most {result['bounds'][dtype]:g} allowed")
        for name, errors in by_pattern.items():
            print(f"  {name:22}" + "  ".join(f"{what} {error:.1e}" for what, error in errors.items()))


def _show_attention(result):
    peer = {"FlexAttention": result["flex_attention"]} if "milliseconds" in result["flex_attention"] else {}
    for name, found in (result["attention"] | peer).items():
        if isinstance(found, dict):
            share = f", {100 * found['of_peak']:.0f} % of the peak" if "of_peak" in found else ""
            print(f"{name:22}" + (found.get("error") or f"{found['milliseconds']:.3f} ms{share}"))
    if not peer:
        print(f"FlexAttention: not measured: {result['flex_attention']['not_measured']}")


def _show_all(result):
    for name, part in result["parts"].items():
        print(f"{name:16}{part['seconds']:8.1f} s  {part['failed'] or 'measured'}")
    print(f"results: {result['out']}/*.json")


def _show_train(result):
    seconds, mesh = result["seconds_per_step"], result["mesh"]
    shape = " x ".join(f"{axis} {size}" for axis, size in mesh.items() if size > 1) or "one device"
    print(f"{result['device_kind']}, {shape}: {result['batch_size']} x {result['length']} tokens a step")
    print(f"  seconds of a step  {seconds['median']:.4f} ({seconds['min']:.4f} to {seconds['max']:.4f})")
    print(f"  tokens/s           {result['tokens_per_second']:.1f}")
    share = f", {100 * result['mfu']:.1f} % of the peak" if "mfu" in result else ""
    print(f"  model FLOP/s       {result['model_flops_per_second']:.3e}{share}")
    for what, size in result["peak_bytes"].items():
        print(f"  memory, {what:10} {size / 2**30:.2f} GiB a device")
    attention, peer = result["attention"], result["peer"]
    print("attention of one layer and row, forward and backward")
    for side, what in (("attend", "as trained"), ("dense", "a whole mask")):
        found = attention[side]
        print(f"  {what:18} " + (f"{found['milliseconds']:.3f} ms" if "milliseconds" in found else found["error"]))
    if "speedup" in attention:
        ideal = f"{attention['ideal_speedup']:.2f} by what may be looked at"
        print(f"  times as fast      {attention['speedup']:.2f} ({ideal})")
    if "tokens_per_second" in peer:
        times = f", ours {result['times_the_peer']:.2f} times that" if "times_the_peer" in result else ""
        print(f"torch {peer['torch']}, {peer['attention']}, in {peer['micro_batches']} micro-batches")
        print(f"  tokens/s           {peer['tokens_per_second']:.1f}{times}")
    else:
        print(f"torch: not measured: {peer['not_measured']}")


SHOWN = {"decode": _show_decode, "forward": _show_forward, "train": _show_train, "attention": _show_attention}
SHOWN |= {"serve": _show_serve, "kernels": _show_kernels, "device": _show_device, "all": _show_all}
