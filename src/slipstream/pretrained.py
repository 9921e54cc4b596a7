"""Modules from Hugging Face folders and timm names, with inputs they take; never a download."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

TOKENS = 8  # of an example text
IMAGE = 224  # the side of an example image, where the model does not name one


def model_from_config(folder: str | Path) -> nn.Module:
    """Build the model of a Hugging Face folder on the meta device: shapes without values.

    Args:
        folder: Holds `config.json`; its weights are not read.

    Returns:
        The model, of the class that the configuration names, in evaluation mode.

    Raises:
        ValueError: If there is no such folder, or transformers does not know the architecture.
    """
    config = _config_of(Path(folder))
    with torch.device("meta"):
        model: nn.Module = _class_of(config, folder)(config)
    return model.eval()


def load_pretrained(folder: str | Path) -> nn.Module:
    """Build the model of a Hugging Face folder, with its weights in the type they are stored in.

    Args:
        folder: Holds `config.json` and the weights, as `save_pretrained` writes them.

    Returns:
        The model, of the class that the configuration names, in evaluation mode.

    Raises:
        ValueError: If there is no such folder, if transformers does not know the architecture,
            or if the weights are missing or cannot be read.
    """
    config = _config_of(Path(folder))
    kind = _class_of(config, folder)
    try:
        model: nn.Module = kind.from_pretrained(folder, local_files_only=True, dtype="auto")
    except OSError as error:
        raise ValueError(f"The weights in {folder} cannot be read: {error}") from error
    return model.eval()


def timm_model(name: str) -> nn.Module:
    """Build an untrained network of timm by its name.

    Args:
        name: Such as `resnet50`.

    Returns:
        The network, in evaluation mode.

    Raises:
        ValueError: If timm has no such network.
    """
    timm = _import("timm")
    if not timm.is_model(name):
        near = timm.list_models(f"*{name}*")[:5]
        known = f"; it has {', '.join(near)}" if near else ""
        raise ValueError(f"timm has no network {name!r}{known}.")
    model: nn.Module = timm.create_model(name, pretrained=False)
    return model.eval()


def example_input_for(model: nn.Module) -> dict[str, Any] | Tensor:
    """Return an input that a model of transformers or timm accepts, always the same.

    Args:
        model: Built by one of the functions above, or by those libraries.

    Returns:
        Two short texts, images or sounds: keyword arguments, or a tensor for timm.

    Raises:
        ValueError: If the model is of another origin.
    """
    if not hasattr(model, "main_input_name"):
        shape = (getattr(model, "pretrained_cfg", None) or {}).get("input_size")
        if shape is None:
            raise ValueError(
                f"{type(model).__name__} does not say what it takes: give an example input."
            )
        return _noise(*shape)
    config: Any = model.config
    names = inspect.signature(model.forward).parameters
    given: dict[str, Any] = {}
    for name, make in _INPUTS.items():
        if name in names and _wants(model, name):
            given[name] = make(config)
    if not given:
        raise ValueError(f"No example of the inputs of {type(model).__name__} is known: give one.")
    # What is kept for the next token is no output.
    return given | ({"use_cache": False} if "use_cache" in names else {})


def other_inputs_for(model: nn.Module, example_input: Any) -> Iterator[dict[str, Any]]:
    """Yield the example with each optional input of a model of transformers, one at a time.

    Args:
        model: Any module; of another origin, there are none.
        example_input: As `example_input_for` returns it.

    Yields:
        Keyword arguments, some of which the model may refuse.
    """
    if not hasattr(model, "main_input_name") or not isinstance(example_input, Mapping):
        return
    names = inspect.signature(model.forward).parameters
    main = example_input.get(model.main_input_name)
    for name, make in _OPTIONAL.items():
        if name in names and name not in example_input and isinstance(main, Tensor):
            with suppress(AttributeError, IndexError, TypeError):
                yield {**example_input, name: make(main, model)}


def with_masks(model: nn.Module, example_input: Any) -> dict[str, Any]:
    """Return the example with masks that mask nothing, which compiled models may demand.

    Args:
        model: Any module; of another origin than transformers, it takes no masks.
        example_input: As `example_input_for` returns it.

    Returns:
        Keyword arguments; none if the model takes no further mask.
    """
    if not hasattr(model, "main_input_name") or not isinstance(example_input, Mapping):
        return {}
    names = inspect.signature(model.forward).parameters
    masks = {
        mask: torch.ones_like(example_input[given])
        for given, mask in MASKS.items()
        if mask in names and example_input.get(mask) is None and given in example_input
    }
    return {**example_input, **masks} if masks else {}


def lacking_input(model: nn.Module, example_input: Any) -> str:
    """Return what to give besides, if an encoder with a decoder is given the encoder's input only.

    Args:
        model: Any module; of another origin than transformers, nothing is known to be lacking.
        example_input: Which the model refuses.

    Returns:
        A sentence for the user, after a space; empty if nothing is known to be lacking.
    """
    if not hasattr(model, "main_input_name") or not _wants(model, "decoder_input_ids"):
        return ""
    names = list(inspect.signature(model.forward).parameters)
    count = len(example_input) if isinstance(example_input, tuple | list) else 1
    given = set(example_input if isinstance(example_input, Mapping) else names[:count])
    known = {"decoder_input_ids", "decoder_inputs_embeds", "labels"}
    if "decoder_input_ids" not in names or given & known:
        return ""
    return (
        f" {type(model).__name__} is an encoder with a decoder, whose input is lacking: give a "
        f"dictionary of {model.main_input_name} and decoder_input_ids, such as "
        "slipstream.pretrained.example_input_for(model)."
    )


def _wants(model: nn.Module, name: str) -> bool:
    config: Any = model.config
    if name == model.main_input_name:
        return True
    if name == "decoder_input_ids":
        return bool(getattr(config, "is_encoder_decoder", False))
    # Two towers see both; a language model that may be shown an image has a token for it.
    towers = hasattr(config, "text_config") and hasattr(config, "vision_config")
    return name == "pixel_values" and towers and not hasattr(config, "image_token_id")


def _tokens(config: Any) -> Tensor:
    text = config.get_text_config()
    longest = getattr(text, "max_position_embeddings", None) or TOKENS
    # RoBERTa numbers positions from behind its padding token.
    length = max(min(TOKENS, longest - 1 - (getattr(text, "pad_token_id", None) or 0)), 1)
    generator = torch.Generator().manual_seed(0)
    return torch.randint(3, text.vocab_size, (2, length), generator=generator)


def _pixels(config: Any) -> Tensor:
    vision = getattr(config, "vision_config", config)
    size = getattr(vision, "image_size", None) or IMAGE
    sides = size if isinstance(size, list | tuple) else (size, size)
    return _noise(getattr(vision, "num_channels", 3), *sides)


def _spectrogram(config: Any) -> Tensor:
    return _noise(config.num_mel_bins, 2 * config.max_source_positions)


def _wave(_: Any) -> Tensor:
    return _noise(4000)


def _noise(*shape: int) -> Tensor:
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))


_INPUTS: dict[str, Callable[[Any], Tensor]] = {
    "input_ids": _tokens,
    "pixel_values": _pixels,
    "input_features": _spectrogram,
    "input_values": _wave,
    "decoder_input_ids": _tokens,
}


def _masked_patches(images: Tensor, model: nn.Module) -> Tensor:
    config: Any = model.config
    patches = (images.shape[-1] // config.patch_size) ** 2
    return torch.ones(len(images), patches, dtype=torch.bool, device=images.device)


def _masked_times(waves: Tensor, model: nn.Module) -> Tensor:
    count = model._get_feat_extract_output_lengths(waves.shape[1])  # type: ignore[operator]
    return torch.ones(len(waves), int(count), dtype=torch.bool, device=waves.device)


MASKS = {"input_ids": "attention_mask", "decoder_input_ids": "decoder_attention_mask"}
_OPTIONAL: dict[str, Callable[[Tensor, nn.Module], Tensor]] = {
    "token_type_ids": lambda tokens, _: torch.zeros_like(tokens),
    "attention_mask": lambda given, _: torch.ones_like(given, dtype=torch.int64),
    "bool_masked_pos": _masked_patches,
    "mask_time_indices": _masked_times,
    "langs": lambda tokens, _: torch.zeros_like(tokens),
}


def _config_of(folder: Path) -> Any:
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} is not a Hugging Face folder: it holds no config.json.")
    transformers = _import("transformers")
    try:
        return transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    except (KeyError, OSError, ValueError) as error:
        raise ValueError(f"{folder / 'config.json'} cannot be read: {error}") from error


def _class_of(config: Any, folder: str | Path) -> Any:
    """The class that saved the folder; a configuration alone stands for the bare model."""
    transformers = _import("transformers")
    names = config.architectures or []
    known = [getattr(transformers, name) for name in names if hasattr(transformers, name)]
    if known:
        return known[0]
    if names or type(config) not in transformers.MODEL_MAPPING:
        what = names[0] if names else config.model_type
        raise ValueError(f"{folder} is of {what!r}, which transformers does not know.")
    return transformers.MODEL_MAPPING[type(config)]


def _import(package: str) -> ModuleType:
    try:
        return import_module(package)
    except ModuleNotFoundError as error:
        named = "slipstream[transformers]" if package == "transformers" else package
        raise ModuleNotFoundError(
            f'This needs {package}: pip install "{named}".', name=package
        ) from error
