"""The messages of the Open Inference Protocol over gRPC, made at run time from their names, types and numbers.

They are what ``protoc`` would generate, without a generated file: gRPC and protobuf are all that they need. They are in
a pool of their own, so that a process may import the messages of a client of the same protocol beside them.
"""

from typing import Any

from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

PACKAGE = "inference"
SERVICE = f"{PACKAGE}.GRPCInferenceService"
_PARAMETERS = "map InferParameter"
_TENSOR = {"name": "string 1", "datatype": "string 2", "shape": "repeated int64 3"}
_OF_MODEL = {"name": "string 1", "version": "string 2"}
_GIVEN = {**_TENSOR, "parameters": f"{_PARAMETERS} 4", "contents": "InferTensorContents 5"}
# Fields as [repeated, map or oneof] TYPE NUMBER; the keys of all maps are strings.
_MESSAGES: dict[str, dict[str, str]] = {
    "ServerLiveRequest": {},
    "ServerLiveResponse": {"live": "bool 1"},
    "ServerReadyRequest": {},
    "ServerReadyResponse": {"ready": "bool 1"},
    "ModelReadyRequest": _OF_MODEL,
    "ModelReadyResponse": {"ready": "bool 1"},
    "ServerMetadataRequest": {},
    "ServerMetadataResponse": {"name": "string 1", "version": "string 2", "extensions": "repeated string 3"},
    "ModelMetadataRequest": _OF_MODEL,
    "ModelMetadataResponse": {
        "name": "string 1",
        "versions": "repeated string 2",
        "platform": "string 3",
        "inputs": "repeated ModelMetadataResponse.TensorMetadata 4",
        "outputs": "repeated ModelMetadataResponse.TensorMetadata 5",
    },
    "ModelMetadataResponse.TensorMetadata": _TENSOR,
    "ModelInferRequest": {
        "model_name": "string 1",
        "model_version": "string 2",
        "id": "string 3",
        "parameters": f"{_PARAMETERS} 4",
        "inputs": "repeated ModelInferRequest.InferInputTensor 5",
        "outputs": "repeated ModelInferRequest.InferRequestedOutputTensor 6",
        "raw_input_contents": "repeated bytes 7",
    },
    "ModelInferRequest.InferInputTensor": _GIVEN,
    "ModelInferRequest.InferRequestedOutputTensor": {"name": "string 1", "parameters": f"{_PARAMETERS} 2"},
    "ModelInferResponse": {
        "model_name": "string 1",
        "model_version": "string 2",
        "id": "string 3",
        "parameters": f"{_PARAMETERS} 4",
        "outputs": "repeated ModelInferResponse.InferOutputTensor 5",
        "raw_output_contents": "repeated bytes 6",
    },
    "ModelInferResponse.InferOutputTensor": _GIVEN,
    "InferParameter": {
        "bool_param": "oneof bool 1",
        "int64_param": "oneof int64 2",
        "string_param": "oneof string 3",
        "double_param": "oneof double 4",
        "uint64_param": "oneof uint64 5",
    },
    "InferTensorContents": {
        "bool_contents": "repeated bool 1",
        "int_contents": "repeated int32 2",
        "int64_contents": "repeated int64 3",
        "uint_contents": "repeated uint32 4",
        "uint64_contents": "repeated uint64 5",
        "fp32_contents": "repeated float 6",
        "fp64_contents": "repeated double 7",
        "bytes_contents": "repeated bytes 8",
    },
}
_ONEOF = "parameter_choice"


def message(name: str) -> Any:
    """Returns the class of a message, such as ``ModelInferRequest``."""
    return GetMessageClass(_POOL.FindMessageTypeByName(f"{PACKAGE}.{name}"))


def _pool() -> DescriptorPool:
    file = FileDescriptorProto(name="nasrec_torchrec/open_inference.proto", package=PACKAGE, syntax="proto3")
    made: dict[str, DescriptorProto] = {}
    for path, fields in _MESSAGES.items():
        outer, _, name = path.rpartition(".")
        made[path] = (made[outer].nested_type if outer else file.message_type).add(name=name)
        for field, text in fields.items():
            _add(made[path], path, field, text)
    pool = DescriptorPool()
    pool.Add(file)
    return pool


def _add(message: DescriptorProto, path: str, name: str, text: str) -> None:
    *kinds, kind, number = text.split()
    added = message.field.add(name=name, number=int(number), label=FieldDescriptorProto.LABEL_OPTIONAL)
    if kinds == ["map"]:
        entry = message.nested_type.add(name=f"{name.title()}Entry")
        entry.options.map_entry = True
        _add(entry, path, "key", "string 1")
        _add(entry, path, "value", f"{kind} 2")
        kind = f"{path}.{entry.name}"
    if kinds in (["map"], ["repeated"]):
        added.label = FieldDescriptorProto.LABEL_REPEATED
    if kinds == ["oneof"]:
        if not message.oneof_decl:
            message.oneof_decl.add(name=_ONEOF)
        added.oneof_index = 0
    if kind[0].isupper():
        added.type, added.type_name = FieldDescriptorProto.TYPE_MESSAGE, f".{PACKAGE}.{kind}"
    else:
        added.type = FieldDescriptorProto.Type.Value(f"TYPE_{kind.upper()}")


_POOL = _pool()
