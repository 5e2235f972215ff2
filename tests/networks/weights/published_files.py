"""Files as they were published: names, depths and containers from the specification, values of our own."""

import torch

from mambaseg.networks import create_network

TINY = {"embed_dim": 8, "d_state": 2}


def vmamba_state(depths=(2, 2, 3, 2), names="old", classes=11, device="cpu", **options):
    """The tensors of a first-release VMamba classifier, under its first or its later names."""
    torch.manual_seed(7)
    with torch.device(device):
        state = create_network("vmamba_tiny", 3, classes, depths=depths, **TINY | options).state_dict()
    return state if names == "new" else {old_name(key): value for key, value in state.items()}


def old_name(key):
    """What the first release called a tensor; written out here, apart from the rules under test."""
    part, _, rest = key.partition(".")
    if part == "patch_embed":
        number, _, leaf = rest.partition(".")
        return f"patch_embed.{ {'0': 'proj', '2': 'norm'}[number] }.{leaf}".replace(" ", "")
    if part == "classifier":
        return rest
    words = key.split(".")
    if words[2] == "blocks":
        words[4] = {"norm": "ln_1", "op": "self_attention"}[words[4]]
    return ".".join(words)


def swin_state(depths=(2, 2, 3, 2), classes=11, device="cpu", **options):
    """The tensors of a Swin classifier, with the buffers that published files carry."""
    torch.manual_seed(7)
    with torch.device(device):
        network = create_network("swin_unet", 3, 4, depths=depths, **options)
        encoder = {k: v for k, v in network.state_dict().items() if k.startswith(("patch_embed.", "layers.", "norm."))}
        width = network.norm.weight.numel()
        encoder |= {"head.weight": torch.zeros(classes, width), "head.bias": torch.zeros(classes)}
        for level, depth in enumerate(depths):
            for block in range(depth):
                name = f"layers.{level}.blocks.{block}."
                encoder[f"{name}attn.relative_position_index"] = torch.zeros(9, 9, dtype=torch.int64)
                if block % 2 and level < 3:
                    encoder[f"{name}attn_mask"] = torch.zeros(4, 9, 9)
    return encoder
