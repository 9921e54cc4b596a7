"""Folders that transformers wrote are built, loaded and fed; what is wrong with one is said."""

import pytest
import torch

from slipstream.pretrained import example_input_for, load_pretrained, model_from_config, timm_model
from slipstream.weights import weights_of

transformers = pytest.importorskip("transformers")

SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 40,
    "max_position_embeddings": 32,
}
MODELS = {
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL)),
    "roberta": lambda: transformers.RobertaForMaskedLM(transformers.RobertaConfig(**SMALL)),
    "vit": lambda: transformers.ViTForImageClassification(
        transformers.ViTConfig(**SMALL, image_size=8, patch_size=4)
    ),
    "t5": lambda: transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=40, d_model=16, d_kv=4, d_ff=24, num_layers=1, num_heads=2,
            decoder_start_token_id=0,
        )
    ),
    "clip": lambda: transformers.CLIPModel(
        transformers.CLIPConfig(
            text_config=SMALL,
            vision_config=SMALL | {"image_size": 8, "patch_size": 4},
            projection_dim=6,
        )
    ),
    "whisper": lambda: transformers.WhisperForConditionalGeneration(
        transformers.WhisperConfig(
            vocab_size=40, num_mel_bins=4, d_model=16, max_source_positions=6,
            max_target_positions=12, encoder_layers=1, decoder_layers=1,
            encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=24,
            decoder_ffn_dim=24, pad_token_id=0, decoder_start_token_id=1,
            bos_token_id=1, eos_token_id=2,
        )
    ),
}  # fmt: skip


@pytest.fixture(params=MODELS)
def saved(request, tmp_path):
    model = MODELS[request.param]().eval()
    model.save_pretrained(tmp_path)
    return model, tmp_path


def logits(model):
    with torch.no_grad():
        result = model(**example_input_for(model))
    return next(value for name, value in result.items() if "logits" in name)


def test_a_folder_gives_its_model_with_weights_or_without(saved):
    model, folder = saved
    loaded, shapes = load_pretrained(folder), model_from_config(folder)
    assert type(loaded) is type(shapes) is type(model)
    assert not loaded.training
    assert not shapes.training
    assert {value.device.type for value in weights_of(shapes).values()} == {"meta"}
    assert weights_of(shapes).keys() == weights_of(model).keys()
    assert torch.equal(logits(loaded), logits(model))


def test_the_stored_type_is_kept(tmp_path):
    MODELS["llama"]().bfloat16().save_pretrained(tmp_path)
    assert load_pretrained(tmp_path).dtype == torch.bfloat16


def test_a_folder_without_weights_is_refused(tmp_path):
    transformers.LlamaConfig(**SMALL, architectures=["LlamaForCausalLM"]).save_pretrained(tmp_path)
    assert type(model_from_config(tmp_path)).__name__ == "LlamaForCausalLM"
    with pytest.raises(ValueError, match=r"The weights in .* cannot be read"):
        load_pretrained(tmp_path)


def test_a_folder_without_a_configuration_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"not a Hugging Face folder: it holds no config\.json"):
        model_from_config(tmp_path)


def test_an_architecture_that_transformers_lacks_is_named(tmp_path):
    transformers.LlamaConfig(**SMALL, architectures=["Marvel"]).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is of 'Marvel', which transformers does not know"):
        model_from_config(tmp_path)


def test_timm_networks_come_by_name():
    pytest.importorskip("timm")
    model = timm_model("resnet10t")
    assert example_input_for(model).shape == (2, 3, 176, 176)
    with pytest.raises(ValueError, match="no network 'resnet10tt'"):
        timm_model("resnet10tt")


def test_a_model_of_ones_own_does_not_tell_its_input():
    with pytest.raises(ValueError, match="Linear does not say what it takes"):
        example_input_for(torch.nn.Linear(3, 2))
