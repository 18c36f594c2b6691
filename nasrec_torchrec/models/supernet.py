"""SuperNet, the shared weights of all architectures of a search space."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from nasrec_torchrec.architecture import Architecture
from nasrec_torchrec.models.nasrecnet import NASRecNet, check_dense_in_features, predict
from nasrec_torchrec.modules.interaction_arch import InteractionArch
from nasrec_torchrec.modules.sparse_arch import SparseArch
from nasrec_torchrec.search_space import SearchSpace
from nasrec_torchrec.table_widths import check_widths


class SharedInteractionArch(nn.Module):
    """Storage for the parameters of every subnet.

    The subnet that runs is an :class:`~nasrec_torchrec.modules.interaction_arch.InteractionArch` whose parameters are
    views: prefix slices of the stored parameters with the same names. They are parameters in their own right with
    gradients of the subnet's size, and updating them in place updates the storage. A step therefore costs what the
    subnet costs, and a subnet computes what the extracted model computes.

    Args:
        search_space: The architectures to store.
        dense_in_features: Number of dense features.
        num_tokens: Number of sparse features.
        embedding_dim: Width E of a token.
        use_layernorm: Whether to normalize after each linear layer, over the width in use.
        device: Device of the storage; ``meta`` is allowed.
        tables: Name and embedding dimension of the table of every token, if some of them differ from E.
    """

    def __init__(
        self,
        search_space: SearchSpace,
        dense_in_features: int,
        num_tokens: int,
        embedding_dim: int,
        use_layernorm: bool = True,
        device: torch.device | None = None,
        tables: Sequence[tuple[str, int]] = (),
    ) -> None:
        super().__init__()
        self.search_space = search_space
        self.use_layernorm = use_layernorm
        union = search_space.union()

        def stored(architecture: Architecture) -> InteractionArch:
            sizes = dense_in_features, num_tokens, embedding_dim
            return InteractionArch(architecture, *sizes, use_layernorm, shared=True, device=device, tables=tables)

        self.storage = stored(union)
        for normalization in search_space.normalizations:
            if normalization != union.blocks[0].normalization:
                blocks = tuple(replace(block, normalization=normalization) for block in union.blocks)
                _add_missing(self.storage, stored(replace(union, blocks=blocks)))
        self.architecture = search_space.sample(torch.Generator().manual_seed(0), "full")
        self._stored = dict(self.storage.named_modules())
        # A list keeps the subnet from being registered as a child: its parameters are views of the storage.
        self._bound: list[tuple[InteractionArch, list[tuple[nn.Parameter, nn.Parameter]]]] = []

    def set_architecture(self, architecture: Architecture) -> None:
        """Chooses the subnet that the next forward pass runs.

        Args:
            architecture: An architecture of the search space.

        Raises:
            ValueError: If the architecture does not belong to the search space.
        """
        self.search_space.check(architecture)
        self.architecture = architecture
        self._bound.clear()

    def subnet(self, architecture: Architecture) -> InteractionArch:
        """Builds the interaction part that an architecture selects.

        Args:
            architecture: An architecture of the search space.

        Returns:
            A module whose parameters are views of the storage.
        """
        self.search_space.check(architecture)
        return self._bind(architecture)[0]

    def forward(self, dense_features: Tensor, embedded_features: Tensor) -> Tensor:
        """Computes the logits ``(B, 1)`` of the current subnet from dense features and embeddings."""
        return self._current()[0](dense_features, embedded_features)

    def active_parameters(self) -> Iterator[tuple[nn.Parameter, nn.Parameter]]:
        """Yields each stored parameter that the current subnet uses, together with the subnet's view of it."""
        yield from self._current()[1]

    def _current(self) -> tuple[InteractionArch, list[tuple[nn.Parameter, nn.Parameter]]]:
        # The storage moves when the model is materialised or sent to another device.
        if self._bound and not all(_is_view(view, stored) for stored, view in self._bound[0][1]):
            self._bound.clear()
        if not self._bound:
            self._bound.append(self._bind(self.architecture))
        return self._bound[0]

    def _bind(self, architecture: Architecture) -> tuple[InteractionArch, list[tuple[nn.Parameter, nn.Parameter]]]:
        storage = self.storage
        subnet = InteractionArch(
            architecture,
            storage.dense_in_features,
            storage.num_tokens,
            storage.embedding_dim,
            self.use_layernorm,
            device=torch.device("meta"),
            tables=() if storage.projection is None else storage.projection.tables,
        )
        pairs = []
        for path, module in subnet.named_modules():
            for name, parameter in module._parameters.items():
                if parameter is None:
                    continue
                base = self._stored[path]._parameters[name]
                assert base is not None
                assert all(size <= limit for size, limit in zip(parameter.shape, base.shape, strict=True)), path
                prefix = tuple(slice(0, size) for size in parameter.shape)
                view = nn.Parameter(base.detach()[prefix], requires_grad=base.requires_grad)
                module._parameters[name] = view
                pairs.append((base, view))
        return subnet.train(self.training), pairs


def _add_missing(storage: nn.Module, other: nn.Module) -> None:
    """Adds parameters that only the other one has, such as the bias of a linear layer that no LayerNorm follows."""
    modules = dict(storage.named_modules())
    for path, module in other.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and modules[path]._parameters.get(name) is None:
                modules[path].register_parameter(name, parameter)


def _is_view(view: nn.Parameter, stored: nn.Parameter) -> bool:
    # Without dense features some weights are empty, and an empty tensor has no address to compare.
    return (
        (view.data_ptr() == stored.data_ptr() or not view.numel())
        and view.device == stored.device
        and view.dtype == stored.dtype
        and view.requires_grad == stored.requires_grad
    )


class SuperNet(nn.Module):
    """A model that stores the weights of every architecture of a search space (NASRec, section 4).

    Args:
        embedding_bag_collection: The tables, which all architectures share; see
            :class:`~nasrec_torchrec.models.nasrecnet.NASRecNet`.
        dense_in_features: Number of dense features F_dense, or 0 if there are none.
        search_space: The architectures to store. If it chooses widths of tables, these need the largest width, and an
            architecture reads the first columns of each.
        use_layernorm: Whether to normalize after each linear layer, over the width in use.
        dense_device: Device of the interaction part; ``meta`` is allowed.
        interaction_dim: Width E of the tokens; see :class:`~nasrec_torchrec.models.nasrecnet.NASRecNet`. All
            architectures share the projections, too.
        attention: The targets of sequences that are pooled by attention, which all architectures share; see
            :class:`~nasrec_torchrec.models.nasrecnet.NASRecNet`.

    Raises:
        TypeError: If the collection is of an unsupported kind.
        ValueError: If an operator cannot use tokens of width E, a table whose width is a choice does not have the
            largest width, or the space has batch normalization.

    Example:
        >>> from torchrec.modules.embedding_configs import EmbeddingBagConfig
        >>> from torchrec.modules.embedding_modules import EmbeddingBagCollection
        >>> table = EmbeddingBagConfig(name="t", embedding_dim=16, num_embeddings=50, feature_names=["f"])
        >>> supernet = SuperNet(EmbeddingBagCollection(tables=[table]), 3, SearchSpace(num_blocks=2))
        >>> supernet.set_architecture(supernet.search_space.sample())
        >>> ids = KeyedJaggedTensor.from_lengths_sync(["f"], torch.tensor([1, 2, 3]), torch.tensor([1, 2]))
        >>> supernet(torch.rand(2, 3), ids).shape
        torch.Size([2, 1])
    """

    def __init__(
        self,
        embedding_bag_collection: nn.Module,
        dense_in_features: int,
        search_space: SearchSpace,
        use_layernorm: bool = True,
        dense_device: torch.device | None = None,
        interaction_dim: int | None = None,
        attention: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        check_dense_in_features(dense_in_features)
        if "batch" in search_space.normalizations:
            raise ValueError(
                "normalizations: expected none or layer in a supernet, found batch: the paths share their weights, but "
                "each would need running statistics of its own; nasrec auto trains every architecture by itself"
            )
        widths = search_space.embedding_widths
        if widths and attention:
            raise ValueError(
                "attention: expected none in a search space with embedding_widths: it reads whole embeddings"
            )
        self.sparse_arch = SparseArch(
            embedding_bag_collection, interaction_dim, attention, dense_device, side_by_side=bool(widths)
        )
        search_space = search_space.for_tables(self.sparse_arch.dims)
        check_widths(dict(search_space.union().embedding_widths), self.sparse_arch.dims, exact=True)
        self.interaction_arch = SharedInteractionArch(
            search_space,
            dense_in_features,
            len(self.sparse_arch.feature_names),
            self.sparse_arch.embedding_dim,
            use_layernorm,
            device=dense_device,
            tables=self.sparse_arch.tables,
        )

    @property
    def search_space(self) -> SearchSpace:
        """The architectures that the supernet stores."""
        return self.interaction_arch.search_space

    @property
    def architecture(self) -> Architecture:
        """The architecture that the next forward pass runs."""
        return self.interaction_arch.architecture

    def set_architecture(self, architecture: Architecture) -> None:
        """Chooses the subnet that the next forward pass runs.

        Args:
            architecture: An architecture of the search space.

        Raises:
            ValueError: If the architecture does not belong to the search space.
        """
        self.interaction_arch.set_architecture(architecture)

    def active_parameters(self) -> Iterator[tuple[nn.Parameter, nn.Parameter]]:
        """Lists the parameters outside of the tables that the current subnet uses.

        Gradients arrive on the views. An optimizer over ``supernet.parameters()`` would see none of them, whereas
        :class:`~nasrec_torchrec.training.optimizers.ActiveSliceAdagrad` takes this method and updates the views.

        Returns:
            An iterator over pairs of a stored parameter and the current subnet's view of it.
        """
        pooling = self.sparse_arch.pooling
        shared = [] if pooling is None else [(parameter, parameter) for parameter in pooling.parameters()]
        return chain(self.interaction_arch.active_parameters(), shared)

    def forward(self, dense_features: Tensor, sparse_features: KeyedJaggedTensor) -> Tensor:
        """Computes the logits of a batch with the current architecture.

        Args:
            dense_features: Tensor of shape ``(B, F_dense)``, or ``(B, 0)`` without dense features.
            sparse_features: Ids of every sparse feature for B rows.

        Returns:
            Logits of shape ``(B, 1)``.
        """
        return predict(self.sparse_arch, self.interaction_arch, dense_features, sparse_features)

    @torch.no_grad()
    def extract(self, architecture: Architecture) -> NASRecNet:
        """Copies the weights that an architecture selects, and the tables, into a standalone model.

        The supernet must not be sharded. A table whose width is a choice is copied up to the chosen column.

        Args:
            architecture: An architecture of the search space.

        Returns:
            A model that computes the same logits.

        Raises:
            TypeError: If the architecture chooses widths of tables, and these are not in an ``EmbeddingBagCollection``
                alone.
        """
        subnet = self.interaction_arch.subnet(architecture)
        model = NASRecNet(
            _narrowed(self.sparse_arch.embedding_bag_collection, dict(architecture.embedding_widths)),
            subnet.dense_in_features,
            architecture,
            self.interaction_arch.use_layernorm,
            dense_device=next(self.interaction_arch.parameters()).device,
            interaction_dim=self.sparse_arch.embedding_dim,
            attention=None if self.sparse_arch.pooling is None else self.sparse_arch.pooling.targets,
        )
        if self.sparse_arch.pooling is not None and model.sparse_arch.pooling is not None:
            model.sparse_arch.pooling.load_state_dict(self.sparse_arch.pooling.state_dict())
        model.interaction_arch.to(next(subnet.parameters()).dtype).load_state_dict(subnet.state_dict())
        return model


def _narrowed(collection: nn.Module, widths: Mapping[str, int]) -> nn.Module:
    """Copies a collection; of some tables only as many columns as ``widths`` says."""
    if not widths:
        return copy.deepcopy(collection)
    if not isinstance(collection, EmbeddingBagCollection):
        raise TypeError(f"extract: expected tables in an EmbeddingBagCollection, found a {type(collection).__name__}")
    configs = [
        replace(config, embedding_dim=widths.get(config.name, config.embedding_dim))
        for config in collection.embedding_bag_configs()
    ]
    narrow = EmbeddingBagCollection(tables=configs, device=collection.device, is_weighted=collection.is_weighted())
    for config in configs:
        weight = collection.embedding_bags[config.name].weight
        narrow.embedding_bags[config.name].weight.copy_(weight[:, : config.embedding_dim])
    return narrow
