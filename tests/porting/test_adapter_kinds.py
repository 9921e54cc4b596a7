"""What PEFT keeps in an adapter is carried as its own merge adds it, or refused."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from slipstream.porting import FineTune, PortPlan, port_checkpoint

# All kinds of layers in one table; PEFT makes files of few of them.
from slipstream.porting.adapters import _is_flipped
from slipstream.storage.tensor_form import TensorForm

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")


def base(seed):
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "vocab_size": 20, "attention_bias": True}
    layers = {"num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.LlamaConfig(**sizes, **layers, bos_token_id=0, eos_token_id=1)
    return transformers.LlamaForCausalLM(config)


def adapter(folder, *, tuned=None, **options):
    base(0).save_pretrained(folder / "A")
    base(1).save_pretrained(folder / "B")
    config = peft.LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj"], **options)
    tuned = peft.get_peft_model(tuned or base(0), config)
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in (p for p in tuned.parameters() if p.requires_grad):
            parameter.add_(0.05 * torch.randn_like(parameter))
    tuned.save_pretrained(folder / "L")


def port(folder):
    files = FineTune(folder / "A", folder / "L", folder / "B")
    return port_checkpoint(folder / "P", files, plan=PortPlan("identity"))


@pytest.mark.parametrize("bias", ["none", "all", "lora_only"])
def test_biases_are_carried_as_peft_merges_them(tmp_path, bias):
    adapter(tmp_path, bias=bias)
    port(tmp_path)

    def merged(seed, name):
        model = peft.PeftModel.from_pretrained(base(seed), tmp_path / name)
        return model.merge_and_unload().state_dict()

    first, second = base(0).state_dict(), base(1).state_dict()
    tuned, ported = merged(0, "L"), merged(1, "P")
    for name in first:
        torch.testing.assert_close(
            ported[name] - second[name], tuned[name] - first[name], atol=1e-5, rtol=0
        )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"init_lora_weights": "pissa"}, "initialised by pissa, which changes the base"),
        ({"init_lora_weights": "olora"}, "initialised by olora, which changes the base"),
        ({"target_parameters": ["k_proj.weight"]}, "adapts parameters by name"),
        ({"lora_bias": True}, "not part of a plain LoRA and would be lost"),
        ({"trainable_token_indices": {"embed_tokens": [1]}}, "would be lost"),
    ],
)
def test_what_is_more_than_a_product_is_refused(tmp_path, options, words):
    adapter(tmp_path, **options)
    with pytest.raises(ValueError, match=words):
        port(tmp_path)
    assert not (tmp_path / "P").exists()


def test_tensors_of_kinds_to_come_are_refused(tmp_path):
    adapter(tmp_path)
    file = tmp_path / "L" / "adapter_model.safetensors"
    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_diag.weight"
    save_file({**load_file(file), key: torch.ones(2)}, file)
    with pytest.raises(ValueError, match=r"lora_diag.* is not part of a plain LoRA"):
        port(tmp_path)


def test_a_tensor_that_the_base_ties_is_not_carried_alone(tmp_path):
    adapter(tmp_path, modules_to_save=["lm_head"])
    for name in ("A", "B"):
        model = transformers.LlamaForCausalLM.from_pretrained(tmp_path / name)
        model.config.tie_word_embeddings = True
        model.tie_weights()
        shutil.rmtree(tmp_path / name)
        model.save_pretrained(tmp_path / name)
    with pytest.raises(ValueError, match=r"'lm_head.weight' whole, which from_base .* ties"):
        port(tmp_path)


def test_a_new_head_is_kept_and_that_is_said(tmp_path):
    kind = transformers.LlamaForSequenceClassification
    adapter(tmp_path, tuned=kind(base(0).config), task_type="SEQ_CLS")
    result = port(tmp_path)
    assert any("score.weight: kept in the adapter as it was" in w for w in result.warnings)
    first, second = (
        load_file(tmp_path / name / "adapter_model.safetensors") for name in ("L", "P")
    )
    name = next(name for name in first if "score" in name)
    torch.testing.assert_close(second[name], first[name])


def test_the_kind_of_each_layer_decides_not_one_flag():
    wide, square = TensorForm((3, 5), "float32"), TensorForm((4, 4), "float32")
    for told in (False, True):
        assert _is_flipped((5, 3), wide, known=None, told=told)
        assert not _is_flipped((3, 5), wide, known=True, told=told)
        assert _is_flipped((4, 4), square, known=True, told=told)
        assert not _is_flipped((4, 4), square, known=False, told=told)
        assert _is_flipped((4, 4), square, known=None, told=told) == told


def test_two_shards_with_one_tensor_are_refused(tmp_path):
    from safetensors.torch import save_file

    for number in (1, 2):
        save_file({"w": torch.ones(2)}, tmp_path / f"{number}.safetensors")
    index = {"weight_map": {"w": "1.safetensors", "v": "2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="both hold the tensor 'w'"):
        port_checkpoint(tmp_path / "P", FineTune(tmp_path, tmp_path, tmp_path))
