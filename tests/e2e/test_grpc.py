"""gRPC against the real binary, with Python's grpcio: our service, the open inference protocol, health, reflection.

The stubs are made from proto/ at run time, as a user would make them."""

import atexit
import functools
import json
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

grpc = pytest.importorskip("grpc", reason="grpcio is not installed")
ROOT = Path(__file__).resolve().parents[2]
PROMPT = "Once upon a time"


@functools.cache
def make_stubs():
    """Modules (restkv messages, restkv service, inference messages, inference service)."""
    pytest.importorskip("grpc_tools", reason="grpcio-tools is not installed")
    folder = Path(tempfile.mkdtemp(prefix="restkv-stubs-"))
    atexit.register(shutil.rmtree, folder, True)
    files = ["restkv/v1/inference.proto", "inference/open_inference_grpc.proto"]
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={ROOT / 'proto'}", f"--python_out={folder}",
                    f"--grpc_python_out={folder}", *(str(ROOT / "proto" / name) for name in files)], check=True, timeout=120)
    sys.path.insert(0, str(folder))
    from inference import open_inference_grpc_pb2, open_inference_grpc_pb2_grpc
    from restkv.v1 import inference_pb2, inference_pb2_grpc
    return inference_pb2, inference_pb2_grpc, open_inference_grpc_pb2, open_inference_grpc_pb2_grpc


@pytest.fixture(scope="session")
def stubs():
    return make_stubs()


@pytest.fixture
def channel(server):
    with grpc.insecure_channel(server.grpc_address) as open_channel:
        yield open_channel


@pytest.fixture
def client(stubs, channel):
    return stubs[0], stubs[1].InferenceStub(channel)


@pytest.fixture
def kserve(stubs, channel):
    return stubs[2], stubs[3].GRPCInferenceServiceStub(channel)


def collect(messages) -> tuple[dict[int, str], dict[int, str], object]:
    """Texts and finish reasons by index, and the last message."""
    texts, reasons, last = {}, {}, None
    for last in messages:
        for choice in last.choices:
            texts[choice.index] = texts.get(choice.index, "") + choice.text
            if choice.finish_reason:
                reasons[choice.index] = choice.finish_reason
    return texts, reasons, last


def details_of(error) -> dict:
    """The details of a grpc.RpcError by their type's name."""
    from google.rpc import error_details_pb2
    from google.rpc import status_pb2
    raw = dict(error.trailing_metadata())["grpc-status-details-bin"]
    found = {}
    for detail in status_pb2.Status.FromString(raw).details:
        name = detail.type_url.rpartition(".")[2]
        message = getattr(error_details_pb2, name)()
        detail.Unpack(message)
        found[name] = message
    return found


def test_same_text_and_usage_as_http(server, client):
    pb, stub = client
    expected = server.complete(PROMPT, max_tokens=40)
    messages = list(stub.Generate(pb.GenerateRequest(prompt=PROMPT, max_tokens=40, temperature=0)))
    assert messages[0].id.startswith("cmpl-") and messages[0].model == server.model_id
    texts, reasons, last = collect(messages)
    assert texts == {0: expected["choices"][0]["text"]}
    assert reasons == {0: expected["choices"][0]["finish_reason"]}
    assert last.usage.prompt_tokens == expected["usage"]["prompt_tokens"]
    assert last.usage.completion_tokens == expected["usage"]["completion_tokens"]
    assert last.usage.cache.policy == expected["usage"]["cache"]["policy"]
    # On a busy machine all tokens of so small a model may wait for the first message.
    assert any(len(list(stub.Generate(pb.GenerateRequest(prompt=PROMPT, max_tokens=400, temperature=0)))) > 1
               for _ in range(10)), "nothing was streamed"


def test_every_field_is_read_as_over_http(server, client):
    pb, stub = client
    fields = {"max_tokens": 24, "min_tokens": 2, "n": 2, "temperature": 0.8, "top_p": 0.9, "top_k": 40, "min_p": 0.01,
              "presence_penalty": 0.1, "frequency_penalty": 0.2, "repetition_penalty": 1.1, "seed": 7, "stop": ["zzz", "\n\n"],
              "logprobs": 2, "echo": True, "user": "me", "ignore_eos": True, "skip_special_tokens": True,
              "add_special_tokens": True, "include_stop_str_in_output": False, "logit_bias": {"5": -3.0, "0": 1.5},
              "stop_token_ids": [3], "cache": {"policy": "restkv", "budget": 64, "window": 8}}
    expected = server.complete(PROMPT, **fields)
    bias = {int(key): value for key, value in fields["logit_bias"].items()}
    request = pb.GenerateRequest(prompt=PROMPT, **{**fields, "logit_bias": bias, "cache": pb.CacheOptions(**fields["cache"])})
    texts, _, last = collect(stub.Generate(request))
    assert texts == {choice["index"]: choice["text"] for choice in expected["choices"]}
    assert last.usage.cache.budget == 64


def test_messages_have_the_fields_of_http(server, stubs):
    """Each field that a route takes is one of the message, but for those whose place is elsewhere in gRPC."""
    paths = server.get_json("/openapi.json")["paths"]
    elsewhere = {"stream", "stream_options", "best_of", "response_format", "length_penalty", "spaces_between_special_tokens",
                 "return_tokens_as_token_ids", "session_id",  # meaningless, or asked for by the method
                 "stream_interval", "return_progress",  # of a stream of tokens
                 "prompt",  # three types, three names
                 "metadata", "store", "service_tier", "modalities", "parallel_tool_calls"}
    for path, message in (("/v1/completions", "GenerateRequest"), ("/v1/chat/completions", "ChatRequest")):
        properties = paths[path]["post"]["requestBody"]["content"]["application/json"]["schema"]["properties"]
        fields = set(getattr(stubs[0], message).DESCRIPTOR.fields_by_name)
        assert set(properties) - fields - elsewhere == set(), message
    cache = set(paths["/v1/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]["properties"]["cache"]["properties"])
    assert cache - set(stubs[0].CacheOptions.DESCRIPTOR.fields_by_name) == set()


def test_return_prompt_text(server, client):
    pb, stub = client
    messages = list(stub.Generate(pb.GenerateRequest(prompt=PROMPT, max_tokens=8, temperature=0, return_prompt_text=True)))
    texts = [choice.prompt_text for message in messages for choice in message.choices if choice.HasField("prompt_text")]
    assert texts == [PROMPT]


def test_cache_trace(server, client):
    pb, stub = client
    story = "Once upon a time there was a little girl. " * 8
    options = pb.CacheOptions(budget=48, trace_bins=True, probe_token_ids=pb.TokenIds(ids=[5, 6, 7]))
    messages = list(stub.Generate(pb.GenerateRequest(prompt=story, max_tokens=40, temperature=0, cache=options)))
    name = messages[0].id
    cuts, page = [], pb.CacheTrace(next=0)
    while page.HasField("next"):
        page = stub.GetCacheTrace(pb.GetCacheTraceRequest(id=name, **{"from": page.next}, limit=7))
        cuts += page.cuts
    assert len(cuts) == page.num_cuts > 7 and (page.policy, page.budget, page.truncated) == ("restkv", 48, False)
    assert sum(len(head.evicted) for cut in cuts for head in cut.heads) == messages[-1].usage.cache.evicted > 0
    assert all(len(head.bins) == len(head.evicted) and len(head.scores) == head.kept for cut in cuts for head in cut.heads)
    over_http = server.get_json(f"/v1/cache/traces/{name}?limit=1")
    first = over_http["cuts"][0]["heads"][0]
    assert list(cuts[0].heads[0].evicted) == first["evicted"] and list(cuts[0].heads[0].bins) == first["bins"]
    assert not stub.GetCacheTrace(pb.GetCacheTraceRequest(id=name, scores=False)).cuts[0].heads[0].scores
    for request, code in (({"id": "cmpl-nobody"}, "NOT_FOUND"), ({"id": name, "choice": 1}, "NOT_FOUND"),
                          ({"id": name, "limit": 1025}, "INVALID_ARGUMENT"), ({"id": name, "from": -1}, "INVALID_ARGUMENT")):
        with pytest.raises(grpc.RpcError) as error:
            stub.GetCacheTrace(pb.GetCacheTraceRequest(**request))
        assert error.value.code().name == code, request


def test_prompt_as_token_ids_and_as_a_list(server, client):
    pb, stub = client
    tokens = list(stub.Tokenize(pb.TokenizeRequest(prompt=PROMPT)).tokens)
    assert tokens == server.post_json("/tokenize", {"prompt": PROMPT})["tokens"]
    assert stub.Detokenize(pb.DetokenizeRequest(tokens=tokens)).prompt == server.post_json("/detokenize", {"tokens": tokens})["prompt"]
    one, _, _ = collect(stub.Generate(pb.GenerateRequest(prompt=PROMPT, max_tokens=8, temperature=0)))
    same, _, _ = collect(stub.Generate(pb.GenerateRequest(prompt_token_ids=pb.TokenIds(ids=tokens), max_tokens=8, temperature=0)))
    assert one == same
    both, _, last = collect(stub.Generate(pb.GenerateRequest(prompts=pb.PromptList(texts=[PROMPT, "The"]), max_tokens=8,
                                                             temperature=0)))
    assert set(both) == {0, 1} and both[0] == one[0]
    assert last.usage.completion_tokens == 16


def test_logprobs(server, client):
    pb, stub = client
    expected = server.complete("The", max_tokens=3, logprobs=2)["choices"][0]["logprobs"]
    found = [entry for message in stub.Generate(pb.GenerateRequest(prompt="The", max_tokens=3, logprobs=2, temperature=0))
             for choice in message.choices for entry in choice.logprobs]
    assert [entry.logprob for entry in found] == pytest.approx(expected["token_logprobs"], abs=1e-5)
    assert all(len(entry.top) == 2 for entry in found)


def test_chat(start_server, stories_model, stubs, tmp_path):
    template = tmp_path / "plain.jinja"
    template.write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{{ tools | length if tools else '' }}")
    server = start_server(stories_model, "--chat-template", template)
    pb, services = stubs[0], stubs[1]
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello"}]
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    fields = {"max_completion_tokens": 12, "temperature": 0, "logprobs": True, "top_logprobs": 2}
    expected = server.post_json("/v1/chat/completions", {"messages": messages, "tools": tools, **fields})
    with grpc.insecure_channel(server.grpc_address) as channel:
        stub = services.InferenceStub(channel)
        request = pb.ChatRequest(messages=[pb.ChatMessage(**message) for message in messages], tools=json.dumps(tools), **fields)
        answer = list(stub.Chat(request))
        assert answer[0].id.startswith("chatcmpl-")
        texts, reasons, last = collect(answer)
        assert texts == {0: expected["choices"][0]["message"]["content"]} and reasons == {0: "length"}
        assert last.usage.prompt_tokens == expected["usage"]["prompt_tokens"]
        for change, field in (({"messages": []}, "messages"), ({"tools": "{"}, "tools"), ({"tool_choice": "required"}, "tool_choice")):
            bad = pb.ChatRequest()
            bad.CopyFrom(request)
            for name, value in change.items():
                bad.ClearField(name) if value == [] else setattr(bad, name, value)
            with pytest.raises(grpc.RpcError) as error:
                list(stub.Chat(bad))
            assert details_of(error.value)["BadRequest"].field_violations[0].field == field


def test_token_ids_and_prompt_logprobs(server, client):
    pb, stub = client
    expected = server.complete("The", max_tokens=4, return_token_ids=True, prompt_logprobs=2)["choices"][0]
    messages = list(stub.Generate(pb.GenerateRequest(prompt="The", max_tokens=4, temperature=0, return_token_ids=True, prompt_logprobs=2)))
    choices = [choice for message in messages for choice in message.choices]
    assert [token for choice in choices for token in choice.token_ids] == expected["token_ids"]
    assert list(choices[0].prompt_token_ids) == expected["prompt_token_ids"]
    found = [entry for choice in choices for entry in choice.prompt_logprobs]
    assert not found[0].HasField("logprob") and len(found) == len(expected["prompt_token_ids"])
    for entry, item in list(zip(found, expected["prompt_logprobs"]))[1:]:
        assert entry.logprob == pytest.approx(item[str(entry.token)]["logprob"], abs=1e-5)
        assert entry.rank == item[str(entry.token)]["rank"]


def test_the_documented_client(server, stubs, tmp_path):
    """The Python block of docs/grpc.md, as it stands but for the port."""
    blocks = (ROOT / "docs" / "grpc.md").read_text(encoding="utf-8").split("```python\n")
    code = blocks[1].split("```")[0].replace("127.0.0.1:8001", server.grpc_address)
    folder = Path(stubs[0].__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0 and done.stdout, done.stderr


def test_models(server, client):
    pb, stub = client
    models = stub.ListModels(pb.ListModelsRequest()).models
    assert [model.id for model in models] == [server.model_id]
    assert stub.GetModel(pb.GetModelRequest(id=server.model_id)).max_model_len == models[0].max_model_len > 0
    with pytest.raises(grpc.RpcError) as error:
        stub.GetModel(pb.GetModelRequest(id="other"))
    assert error.value.code() == grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize(("fields", "code", "field"), [
    ({"prompt": "a", "n": 17}, "INVALID_ARGUMENT", "n"),
    ({"prompt": "a", "temperature": -1}, "INVALID_ARGUMENT", "temperature"),
    ({"prompt": "a", "temperature": float("nan")}, "INVALID_ARGUMENT", "temperature"),
    ({"prompt": "a", "max_tokens": -1}, "INVALID_ARGUMENT", "max_tokens"),
    ({"prompt": "a", "max_tokens": 1 << 40}, "INVALID_ARGUMENT", "max_tokens"),
    ({"prompt": "a", "stop_token_ids": [-1]}, "INVALID_ARGUMENT", "stop_token_ids[0]"),
    ({"prompt": "a", "max_tokens": 100000}, "INVALID_ARGUMENT", None),
    ({"prompt": "a", "model": "other"}, "NOT_FOUND", "model"),
    ({}, "INVALID_ARGUMENT", "prompt"),
])
def test_errors_name_the_field(client, fields, code, field):
    pb, stub = client
    with pytest.raises(grpc.RpcError) as error:
        list(stub.Generate(pb.GenerateRequest(**fields)))
    assert error.value.code().name == code, error.value.details()
    if field:
        violations = details_of(error.value)["BadRequest"].field_violations
        assert [violation.field for violation in violations] == [field]


def test_bad_cache_and_bad_bytes(client, channel):
    pb, stub = client
    with pytest.raises(grpc.RpcError) as error:
        list(stub.Generate(pb.GenerateRequest(prompt="a", cache=pb.CacheOptions(budget=1))))
    assert details_of(error.value)["BadRequest"].field_violations[0].field == "cache.budget"
    call = channel.unary_stream("/restkv.v1.Inference/Generate")
    for data in (b"\xff\xff\xff\xff", b"\x12\x02\xc3\x28"):  # no message; a prompt that is not UTF-8
        with pytest.raises(grpc.RpcError):
            list(call(data))
    with pytest.raises(grpc.RpcError) as error:
        channel.unary_unary("/restkv.v1.Inference/Nothing")(b"")
    assert error.value.code() == grpc.StatusCode.UNIMPLEMENTED
    assert stub.ListModels(pb.ListModelsRequest()).models


def test_limits_of_message_and_metadata(client, channel):
    pb, stub = client
    with pytest.raises(grpc.RpcError) as error:
        stub.Tokenize(pb.TokenizeRequest(prompt="a" * ((8 << 20) + 1)))
    assert error.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    with pytest.raises(grpc.RpcError):
        stub.ListModels(pb.ListModelsRequest(), metadata=[("x-long", "a" * 20_000)])
    for attempt in range(5):  # gRPC 1.51 ends a connection with so much metadata: a call may still go out on it
        try:
            assert stub.ListModels(pb.ListModelsRequest()).models
            break
        except grpc.RpcError as gone:
            assert gone.code() == grpc.StatusCode.UNAVAILABLE and attempt < 4, gone
            time.sleep(0.05)


def test_cancel_and_deadline_reach_the_engine(server, client):
    pb, stub = client
    request = pb.GenerateRequest(prompt=PROMPT, max_tokens=400, n=8, ignore_eos=True, temperature=1)
    call = stub.Generate(request)
    next(call)
    call.cancel()
    server.wait_until_idle()
    with pytest.raises(grpc.RpcError) as error:
        list(stub.Generate(request, timeout=0.05))
    assert error.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    server.wait_until_idle()


def test_request_id_is_echoed_or_made(client):
    pb, stub = client
    _, call = stub.ListModels.with_call(pb.ListModelsRequest(), metadata=[("x-request-id", "mine-1")])
    assert dict(call.initial_metadata())["x-request-id"] == "mine-1"
    _, call = stub.ListModels.with_call(pb.ListModelsRequest(), metadata=[("x-request-id", "not mine")])
    assert dict(call.initial_metadata())["x-request-id"].startswith("req-")


def test_full_queue_says_when_to_retry(start_server, stories_model, stubs):
    server = start_server(stories_model, "--max-num-seqs", 1, "--max-queue-requests", 1)
    pb, services = stubs[0], stubs[1]
    with grpc.insecure_channel(server.grpc_address) as channel:
        stub = services.InferenceStub(channel)
        request = pb.GenerateRequest(prompt=PROMPT, max_tokens=450, ignore_eos=True)
        calls = [stub.Generate(request) for _ in range(12)]
        errors = []
        for call in calls:
            try:
                list(call)
            except grpc.RpcError as error:
                errors.append(error)
        assert errors
        for error in errors:
            assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            found = details_of(error)
            assert found["ErrorInfo"].reason == "queue_full"
            assert found["RetryInfo"].retry_delay.seconds >= 1


def test_slow_reader_gets_everything_and_others_go_on(client):
    pb, stub = client
    call = stub.Generate(pb.GenerateRequest(prompt=PROMPT, max_tokens=200, n=4, ignore_eos=True))
    next(call)
    time.sleep(0.5)
    texts, reasons, _ = collect(stub.Generate(pb.GenerateRequest(prompt="The", max_tokens=5, temperature=0)))
    assert reasons == {0: "length"}
    _, reasons, last = collect(call)
    assert len(reasons) == 4 and last.usage.completion_tokens == 800


def test_many_calls_at_once(server, client):
    pb, stub = client
    expected = server.complete("The", max_tokens=10)["choices"][0]["text"]
    failures = []

    def run():
        texts, _, _ = collect(stub.Generate(pb.GenerateRequest(prompt="The", max_tokens=10, temperature=0)))
        if texts != {0: expected}:
            failures.append(texts)

    threads = [threading.Thread(target=run) for _ in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


# The open inference protocol

def infer_request(pb, server, text=PROMPT, **parameters):
    tensor = pb.ModelInferRequest.InferInputTensor(name="text_input", datatype="BYTES", shape=[1],
                                                   contents=pb.InferTensorContents(bytes_contents=[text.encode()]))
    request = pb.ModelInferRequest(model_name=server.model_id, id="r1", inputs=[tensor])
    for name, value in parameters.items():
        kind = {bool: "bool_param", int: "int64_param", str: "string_param", float: "double_param"}[type(value)]
        setattr(request.parameters[name], kind, value)
    return request


def output_of(response, name="text_output"):
    for output in response.outputs:
        if output.name == name:
            return [value.decode() for value in output.contents.bytes_contents]
    raise AssertionError(response)


def test_infer(server, kserve):
    pb, stub = kserve
    expected = server.complete(PROMPT, max_tokens=12)["choices"][0]["text"]
    response = stub.ModelInfer(infer_request(pb, server, max_tokens=12, temperature=0))
    assert response.id == "r1" and response.model_name == server.model_id
    assert output_of(response) == [expected]
    assert output_of(response, "finish_reason") == ["length"]
    assert response.parameters["completion_tokens"].int64_param == 12
    by_group = stub.ModelInfer(infer_request(pb, server, sampling_parameters=json.dumps({"max_tokens": 12, "temperature": 0})))
    assert output_of(by_group) == [expected]


def test_logged_content_need_not_be_text(start_server, stories_model, stubs):
    pb = stubs[2]
    running = start_server(stories_model, "--log-content")
    request = pb.ModelInferRequest()
    request.inputs.add(name="text_input", datatype="BYTES", shape=[1]).contents.bytes_contents.append(b"\xff\xfe hi" + b"a" * 100_000)
    with grpc.insecure_channel(running.grpc_address) as open_channel, pytest.raises(grpc.RpcError) as error:
        stubs[3].GRPCInferenceServiceStub(open_channel).ModelInfer(request, timeout=30)
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT  # longer than the context
    (line,) = [line for line in running.output().splitlines() if "request body" in line]
    assert "\ufffd\ufffd hi" in line and len(line) < 70_000
    assert running.request("GET", "/health")[0] == 200


def test_infer_with_raw_tensors(server, kserve):
    pb, stub = kserve
    expected = server.complete(PROMPT, max_tokens=12)["choices"][0]["text"]
    text = PROMPT.encode()
    tensors = [("text_input", "BYTES", struct.pack("<I", len(text)) + text), ("max_tokens", "INT32", struct.pack("<i", 12)),
               ("temperature", "FP32", struct.pack("<f", 0.0)), ("ignore_eos", "BOOL", b"\0")]
    request = pb.ModelInferRequest(model_name=server.model_id)
    for name, datatype, raw in tensors:
        request.inputs.add(name=name, datatype=datatype, shape=[1])
        request.raw_input_contents.append(raw)
    raw = stub.ModelInfer(request).raw_output_contents[0]
    assert raw[4:].decode() == expected and struct.unpack("<I", raw[:4])[0] == len(expected.encode())
    request.raw_input_contents[1] = b"\0"
    with pytest.raises(grpc.RpcError) as error:
        stub.ModelInfer(request)
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT and "max_tokens" in error.value.details()


def test_stream_infer(server, kserve):
    pb, stub = kserve
    expected = server.complete(PROMPT, max_tokens=12)["choices"][0]["text"]
    requests = [infer_request(pb, server, max_tokens=12, temperature=0), infer_request(pb, server, n=2),
                infer_request(pb, server, "The", max_tokens=3, temperature=0)]
    answers, errors, finals = [""], [], 0
    for response in stub.ModelStreamInfer(iter(requests)):
        if response.error_message:
            errors.append(response.error_message)
        else:
            answers[-1] += output_of(response.infer_response)[0]
        if response.infer_response.parameters["triton_final_response"].bool_param:
            finals += 1
            if not response.error_message:
                answers.append("")
    assert finals == 3 and answers[0] == expected and answers[1]
    assert len(errors) == 1 and "'n'" in errors[0]


@pytest.mark.parametrize("change", [
    lambda r: r.ClearField("inputs"),
    lambda r: setattr(r, "model_name", "other"),
    lambda r: setattr(r, "model_version", "9"),
    lambda r: r.inputs[0].ClearField("contents"),
    lambda r: r.inputs[0].shape.append(3),
    lambda r: setattr(r.inputs[0], "datatype", "FP32"),
    lambda r: setattr(r.parameters["stream"], "bool_param", True),
    lambda r: setattr(r.parameters["sampling_parameters"], "string_param", "{"),
    lambda r: setattr(r.parameters["max_tokens"], "string_param", "ten"),
    lambda r: (setattr(r.inputs[0], "name", "x" * 63 + "é"), r.inputs[0].shape.append(3)),  # shown as far as 64 bytes
])
def test_bad_infer_requests(server, kserve, change):
    pb, stub = kserve
    request = infer_request(pb, server, max_tokens=2)
    change(request)
    with pytest.raises(grpc.RpcError) as error:
        stub.ModelInfer(request)
    assert error.value.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND), error.value.details()
    assert details_of(error.value)["BadRequest"].field_violations[0].field


def test_kserve_metadata(server, kserve):
    pb, stub = kserve
    assert stub.ServerLive(pb.ServerLiveRequest()).live
    assert stub.ServerReady(pb.ServerReadyRequest()).ready
    assert stub.ModelReady(pb.ModelReadyRequest(name=server.model_id)).ready
    assert not stub.ModelReady(pb.ModelReadyRequest(name="other")).ready
    assert stub.ServerMetadata(pb.ServerMetadataRequest()).name == "restkv"
    metadata = stub.ModelMetadata(pb.ModelMetadataRequest(name=server.model_id))
    assert metadata.inputs[0].name == "text_input" and metadata.outputs[0].name == "text_output"
    index = stub.RepositoryIndex(pb.RepositoryIndexRequest()).models
    assert [(model.name, model.state) for model in index] == [(server.model_id, "READY")]


# Health and reflection, with clients nobody here wrote

def test_health(start_server, stories_model):
    health_pb2 = pytest.importorskip("grpc_health.v1.health_pb2", reason="grpcio-health-checking is not installed")
    from grpc_health.v1 import health_pb2_grpc
    server = start_server(stories_model, "--drain-timeout", "5s")
    with grpc.insecure_channel(server.grpc_address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        serving = health_pb2.HealthCheckResponse.SERVING
        for name in ("", "restkv.v1.Inference", "inference.GRPCInferenceService"):
            assert stub.Check(health_pb2.HealthCheckRequest(service=name)).status == serving
        with pytest.raises(grpc.RpcError) as error:
            stub.Check(health_pb2.HealthCheckRequest(service="other"))
        assert error.value.code() == grpc.StatusCode.NOT_FOUND
        # A stream that runs keeps the drain waiting, so that the change is seen.
        body = json.dumps({"prompt": PROMPT, "max_tokens": 480, "n": 16, "ignore_eos": True})
        request = threading.Thread(target=server.request, args=("POST", "/v1/completions", body))
        watch = stub.Watch(health_pb2.HealthCheckRequest(service=""))
        assert next(watch).status == serving
        request.start()
        time.sleep(0.1)
        server.process.terminate()
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        request.join()
        assert server.wait_for_exit() == 0


def test_reflection(channel):
    reflection = pytest.importorskip("grpc_reflection.v1alpha.proto_reflection_descriptor_database",
                                     reason="grpcio-reflection is not installed")
    database = reflection.ProtoReflectionDescriptorDatabase(channel)
    services = set(database.get_services())
    assert {"restkv.v1.Inference", "inference.GRPCInferenceService", "grpc.health.v1.Health"} <= services
    from google.protobuf.descriptor_pool import DescriptorPool
    pool = DescriptorPool(database)
    for name in services:
        assert pool.FindServiceByName(name).methods
    with pytest.raises(KeyError):
        pool.FindServiceByName("no.such.Service")


def test_ports(start_server, stories_model, binary, tmp_path):
    from conftest import run_restkv
    first = start_server(stories_model, "--grpc-port", 0)
    port = first.grpc_address.rpartition(":")[2]
    done = run_restkv("serve", stories_model, "--port", 0, "--grpc-port", port)
    assert done.returncode == 1 and "--grpc-port" in done.stderr
    off = start_server(stories_model, "--no-grpc")
    assert "gRPC on" not in off.output()
    done = run_restkv("serve", stories_model, "--grpc-host", "0.0.0.0")
    assert done.returncode == 2 and "grpc_host" in done.stderr
