"""`MultiheadAttention` in a super-net."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hwnas.errors import UnsupportedError
from hwnas.nn.parametrized import has_choice
from hwnas.supernet.mixed_operation import MixedExpectation, filled_up, joint_values, prefix


class MixedMultiheadAttention(MixedExpectation, torch.nn.MultiheadAttention):
    """Prefixes of the projections of one attention.

    The projections of queries, keys and values are each sliced for themselves, also where PyTorch packs them into
    one matrix. A head takes consecutive rows of them, so the number of heads changes no parameter.

    Among several active values attention runs once for each combination: the widths and heads of a member decide
    over which channels its scores are summed, so that no mask of the largest member gives a smaller one.
    """

    _search_machinery = True
    mixable = ("embed_dim", "num_heads", "kdim", "vdim")
    widths_of_input = ("embed_dim", "kdim", "vdim")
    sizes = ("embed_dim",)
    switches = ("bias", "add_bias_kv")

    @classmethod
    def maximal_arguments(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        """Return the largest widths, with one head."""
        widths = {
            name: max(
                embed if width is None else width
                for embed, width in joint_values([arguments["embed_dim"], arguments.get(name)])
            )
            for name in ("kdim", "vdim")
        }
        return super().maximal_arguments(arguments) | widths | {"num_heads": 1}

    def sliced_state(self, values: dict[str, Any]) -> dict[str, Tensor]:
        """Return the parameters of the member, packed if it packs them."""
        embed, key, value = _widths(values)
        packed: Tensor | None = self.in_proj_weight
        separate = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        projections = separate if packed is None else packed.chunk(3)
        sliced = [prefix(whole, (embed, width)) for whole, width in zip(projections, (embed, key, value), strict=True)]
        if key == embed and value == embed:
            state = {"in_proj_weight": torch.cat(sliced)}
        else:
            state = dict(zip(("q_proj_weight", "k_proj_weight", "v_proj_weight"), sliced, strict=True))
        if self.in_proj_bias is not None and values.get("bias", True):
            state["in_proj_bias"] = torch.cat([part[:embed] for part in self.in_proj_bias.chunk(3)])
            state["out_proj.bias"] = self.out_proj.bias[:embed]
        if self.bias_k is not None and self.bias_v is not None and values.get("add_bias_kv", False):
            state |= {"bias_k": self.bias_k[..., :embed], "bias_v": self.bias_v[..., :embed]}
        return state | {"out_proj.weight": self.out_proj.weight[:embed, :embed]}

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend with the arguments that the relaxation gives.

        Parameters
        ----------
        query, key, value, key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal
            As `torch.nn.MultiheadAttention` takes them; as wide as the largest member where widths are mixed.

        Returns
        -------
        tuple of Tensor and (Tensor or None)
            The output and the weights of attention, the latter if they are asked for.
        """
        y, weights = super().forward(
            query,
            key,
            value,
            key_padding_mask=key_padding_mask,
            need_weights=need_weights,
            attn_mask=attn_mask,
            average_attn_weights=average_attn_weights,
            is_causal=is_causal,
        )
        return y, weights

    def forward_sliced(
        self, x: Tensor, values: dict[str, Any], key: Tensor, value: Tensor, **options: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Attend with the parameters of the member; x is the query."""
        state = self.sliced_state(values)
        transposed = x.dim() == 3 and values.get("batch_first", self.batch_first)
        given = (x, key, value)
        if transposed:  # PyTorch has a shorter way where they are one object, so they stay one
            once = {id(part): part.transpose(0, 1) for part in given}
            given = (once[id(x)], once[id(key)], once[id(value)])
        y, weights = F.multi_head_attention_forward(
            *given,
            _widths(values)[0],
            values["num_heads"],
            state.get("in_proj_weight"),
            state.get("in_proj_bias"),
            state.get("bias_k"),
            state.get("bias_v"),
            values.get("add_zero_attn", self.add_zero_attn),
            values.get("dropout", self.dropout),
            state["out_proj.weight"],
            state.get("out_proj.bias"),
            training=self.training,
            use_separate_proj_weight="in_proj_weight" not in state,
            q_proj_weight=state.get("q_proj_weight"),
            k_proj_weight=state.get("k_proj_weight"),
            v_proj_weight=state.get("v_proj_weight"),
            **options,
        )
        return (y.transpose(0, 1) if transposed else y), weights

    def forward_member(
        self, x: Tensor, values: dict[str, Any], key: Tensor, value: Tensor, **options: Any
    ) -> tuple[Tensor, ...]:
        """Attend to the prefixes of the inputs; without weights of attention where none are asked for."""
        query, *others = [prefix(part, (width,)) for part, width in zip((x, key, value), _widths(values), strict=True)]
        y, weights = self.forward_sliced(query, values, *others, **options)
        y = filled_up(y, x.shape)
        return (y,) if weights is None else (y, weights)

    def forward_mixed(
        self, x: Any, values: dict[str, Any], *inputs: Any, **options: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Return the expectation over the members.

        Raises
        ------
        UnsupportedError
            When the weights of each head are asked for and the number of heads is a mixture.
        """
        heads = self.arguments["num_heads"]
        if has_choice(heads) and not options["average_attn_weights"]:
            labels = ", ".join(leaf.label for leaf in heads.leaves())
            raise UnsupportedError(
                f"MultiheadAttention: the number of heads (labels {labels}) is a mixture, so there are no weights of "
                "each head. Use average_attn_weights=True, or a strategy that samples one architecture"
            )
        y, *weights = super().forward_mixed(x, values, *inputs, **options)
        return y, weights[0] if weights else None


def _widths(values: dict[str, Any]) -> tuple[int, int, int]:
    """Return the widths of queries, keys and values."""
    embed, key, value = values["embed_dim"], values.get("kdim"), values.get("vdim")
    return embed, embed if key is None else key, embed if value is None else value
