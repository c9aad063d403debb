"""Adapters that hold whole tensors of a model, beside the LoRA layers of another."""

import torch


class FullTensorAdapterMixin:
    """
    For models of which an adapter brings a few tensors whole, rather than as low-rank factors. It has the methods with
    which diffusers' pipelines handle LoRA layers, so that what is loaded, set, fused and unloaded in the transformer is
    so here too.

    The value of a tensor is `base + sum of w_i (tensor_i - base)` over the active adapters, computed in float32: one
    adapter of weight 1 gives its own tensors to the last bit, and without any the model's own come back to the last bit.
    """

    _adapters: dict[str, dict[str, torch.Tensor]] | None = None

    @property
    def peft_config(self) -> dict[str, list[str]]:
        """Names of the tensors of each adapter; as of peft, the attribute is missing where no adapter is loaded."""
        if not self._adapters:
            raise AttributeError("no adapter is loaded")
        return {name: list(tensors) for name, tensors in self._adapters.items()}

    def check_full_tensors(self, tensors: dict[str, torch.Tensor]) -> None:
        """`ValueError` naming the first of `tensors` that this model lacks or has in another shape, or cannot reach."""
        own = dict(self.named_parameters())
        for key, tensor in tensors.items():
            if key not in own:
                raise ValueError(f"{type(self).__name__} has no `{key}`.")
            if own[key].shape != tensor.shape:
                raise ValueError(
                    f"`{key}` of {type(self).__name__} has the shape {list(own[key].shape)}, that of the adapter"
                    f" {list(tensor.shape)}."
                )
            if own[key].device.type == "meta":
                raise ValueError(f"`{key}` of {type(self).__name__} is offloaded; load adapters before that.")

    def load_full_tensors(self, tensors: dict[str, torch.Tensor], adapter_name: str) -> None:
        """
        Add an adapter, which is not active yet.

        Args:
            tensors: by the name of the parameter, see [`check_full_tensors`].
            adapter_name: under which it is activated.
        """
        self.check_full_tensors(tensors)
        if self._adapters is None:
            self._adapters, self._weights, self._fused, self._base = {}, {}, {}, {}
            self._active, self._enabled = [], True
        for key in tensors:
            if key not in self._base:
                self._base[key] = self.get_parameter(key).detach().cpu().clone()
        self._adapters[adapter_name] = {key: tensor.detach().cpu().clone() for key, tensor in tensors.items()}
        self._weights[adapter_name] = 1.0

    def full_tensors(self, adapter_name: str) -> dict[str, torch.Tensor]:
        """The tensors of an adapter; none if it has none."""
        return (self._adapters or {}).get(adapter_name, {})

    def set_adapter(self, adapter_name: str | list[str]) -> None:
        """Activate adapters, and no others; names without tensors here are passed over."""
        if self._adapters is not None:
            names = [adapter_name] if isinstance(adapter_name, str) else adapter_name
            self._active = [name for name in names if name in self._adapters]
            self._mix()

    def set_adapters(self, adapter_names: str | list[str], weights: float | list[float | None] | None = None) -> None:
        """Activate adapters, each with its weight, 1 where it is `None`."""
        if self._adapters is not None:
            names = [adapter_names] if isinstance(adapter_names, str) else adapter_names
            weights = weights if isinstance(weights, list) else [weights] * len(names)
            self._weights.update({name: 1.0 if weight is None else weight for name, weight in zip(names, weights)})
            self.set_adapter(names)

    def enable_lora(self) -> None:
        """Bring what is active back."""
        self._enable(True)

    def disable_lora(self) -> None:
        """Bring the model's own tensors back for a while."""
        self._enable(False)

    def _enable(self, enabled: bool) -> None:
        if self._adapters is not None:
            self._enabled = enabled
            self._mix()

    def delete_adapters(self, adapter_names: str | list[str]) -> None:
        """Forget adapters. What is fused stays, as it does in LoRA layers."""
        if self._adapters is None:
            return
        names = {adapter_names} if isinstance(adapter_names, str) else set(adapter_names)
        if names & set(self._fused):
            self._base, self._fused = {key: self.get_parameter(key).detach().cpu().clone() for key in self._base}, {}
        self._adapters = {name: tensors for name, tensors in self._adapters.items() if name not in names}
        self.set_adapter([name for name in self._active if name not in names])

    def unload_lora(self) -> None:
        """Forget all adapters. The model's own tensors come back to the last bit, unless adapters are fused."""
        if self._adapters is not None:
            if not self._fused:
                self.disable_lora()
            self._adapters = None

    def fuse_lora(
        self, lora_scale: float = 1.0, safe_fusing: bool = False, adapter_names: list[str] | None = None
    ) -> None:
        """
        Make adapters, the active ones by default, a part of the model; its own tensors are kept for `unfuse_lora`.

        Raises:
            ValueError: `safe_fusing` is set and there are NaNs.
        """
        if self._adapters is None:
            return
        names = [name for name in (adapter_names or self._active) if name in self._adapters]
        for name in names:
            broken = [key for key, tensor in self._adapters[name].items() if not torch.isfinite(tensor).all()]
            if safe_fusing and broken:
                raise ValueError(f"NaNs detected in `{broken[0]}` of the adapter {name}; it cannot be fused.")
        self._fused.update({name: lora_scale * self._weights[name] for name in names})
        self._mix()

    def unfuse_lora(self) -> None:
        """Undo `fuse_lora`."""
        if self._adapters is not None:
            self._fused = {}
            self._mix()

    @torch.no_grad()
    def _mix(self) -> None:
        weights = self._fused or {name: self._weights[name] for name in self._active}
        if not self._enabled:
            weights = {}
        for key, base in self._base.items():
            parts = [(weight, self._adapters[name]) for name, weight in weights.items()]
            parts = [(weight, tensors[key].float()) for weight, tensors in parts if key in tensors]
            value = base.float() * (1 - sum(weight for weight, _ in parts))
            for weight, tensor in parts:
                value = value + weight * tensor
            self.get_parameter(key).copy_(value)
