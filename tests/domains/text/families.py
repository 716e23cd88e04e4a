"""Tiny random language models, one a family, as folders: config.json and a tokenizer, as `backbone.source` wants."""

from pathlib import Path

WORDS = "a b c d e f g h i j k l m n o p q r s t u v w x y z the cat sat on mat dog ran far => | . ?".split()
SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
IDS = {"vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GROUPED = {"num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64}
T5 = {
    "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0,
    "dropout_rate": 0.1,
}  # fmt: skip
FAMILIES = {
    "llama": ("llama", {**SHAPE, **GROUPED, "tie_word_embeddings": True}),
    "qwen3": ("qwen3", {**SHAPE, **GROUPED, "tie_word_embeddings": False}),
    "gpt2": ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "resid_pdrop": 0.1}),
    "gpt_neox": ("gpt_neox", {**SHAPE, "max_position_embeddings": 64}),
    "opt": ("opt", {"hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
                    "word_embed_proj_dim": 32, "max_position_embeddings": 64}),
    "gemma": ("gemma2", {**SHAPE, **GROUPED}),
    "t5": ("t5", T5),
    "t5_gated": ("t5", {**T5, "feed_forward_proj": "gated-gelu"}),
}  # fmt: skip
TEMPLATE = (
    "{% for m in messages %}{{ m['role'][0] + ' ' + m['content'] }}"
    "{{ ' </s> ' if m['role'] == 'assistant' else ' => ' }}{% endfor %}{{ 'a ' if add_generation_prompt else '' }}"
)


def folder(name: str, path: Path, **changes) -> Path:
    """`path` with the family's config.json and a tokenizer of words; no weights."""
    from transformers import AutoConfig

    kind, shape = FAMILIES[name]
    AutoConfig.for_model(kind, **{**IDS, **shape, **changes}).save_pretrained(path)
    tokenizer().save_pretrained(path)
    return path


def tokenizer(pad: str | None = "<pad>", template: str | None = None):
    """transformers' tokenizer over WORDS; `<s>` stands in front of every text."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = ["<pad>", "<s>", "</s>", "<unk>", *WORDS]
    fast = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    fast.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"} | ({"pad_token": pad} if pad else {})
    made = PreTrainedTokenizerFast(tokenizer_object=fast, **special)
    made.chat_template = template
    return made
