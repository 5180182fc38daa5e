"""Every setting that EMQX has for the gateway and its listeners: honoured, or refused by name."""

from __future__ import annotations

import pytest

from emqx.gateway import NAMED, Gateway
from emqx.node import wait_until
from emqx.page import Page
from websocket_client import WebSocket, request

pytestmark = pytest.mark.plugin

# Of a table of ours and the fields of EMQX's schema that it is for: what the table does not have.
MISSING = """
Name = fun(K) when is_list(K) -> list_to_atom(K); (K) when is_binary(K) -> binary_to_atom(K); (K) -> K end,
Type = fun(S) -> hocon_schema:field_schema(S, type) end,
Field = fun(M, F, Key) -> hd([Type(S) || {K, S} <- M:fields(F), Name(K) =:= Key]) end,
Below = fun B(Table, M, F, Path) ->
    lists:flatmap(fun({K, S}) ->
        Key = Name(K),
        case maps:get(Key, Table, missing) of
            missing -> [lists:flatten(lists:join(".", [atom_to_list(P) || P <- lists:reverse([Key | Path])]))];
            More when is_map(More) -> {ref, SubM, SubF} = Type(S), B(More, SubM, SubF, [Key | Path]);
            _ -> []
        end
    end, M:fields(F))
end,
Listener = fun(Kind) ->
    {ref, LM, LF} = Field(emqx_nats_schema, nats, listeners),
    {map, _, {ref, M, F}} = Field(LM, LF, Kind),
    Below(nats_gateway_emqx_settings:listener(Kind), M, F, [Kind])
end,
"""


def test_every_setting_of_emqx_has_a_fate(gateway: Gateway):
    missing = gateway.node.eval(
        MISSING + "Below(nats_gateway_emqx_settings:gateway(), emqx_nats_schema, nats, [])"
        " ++ lists:flatmap(Listener, [tcp, ssl, ws, wss])"
    )
    assert missing == "[]"


def test_a_setting_that_is_new_would_be_found(gateway: Gateway):
    """The test above sees what is not in the table."""
    missing = gateway.node.eval(
        MISSING + "{ref, M, F} = {ref, emqx_schema, \"tcp_opts\"}, {Listener(tcp), Below(#{}, M, F, []) =/= []}"
    )
    assert missing == "{[],true}"


@pytest.mark.parametrize("kind", ["tcp", "ws"])
def test_tcp_options_are_those_of_the_socket(gateway: Gateway, name: str, kind: str):
    options = {
        "nodelay": False,
        "nolinger": True,
        "recbuf": "16KB",
        "sndbuf": "32KB",
        "buffer": "8KB",
        "backlog": 64,
        "keepalive": "60,10,3",
        "active_n": 5,
    }
    address = gateway.listen(name, kind, tcp_options=options)
    # {raw, 6, ...}: idle time, interval and number of the probes
    names = "nodelay, linger, recbuf, sndbuf, buffer, keepalive, {raw, 6, 4, 4}, {raw, 6, 5, 4}, {raw, 6, 6, 4}"
    with gateway.nats(address, websocket=request() if kind == "ws" else None) as client:
        shown = gateway.node.eval(
            f"[begin {{ok, O}} = inet:getopts(P, [{names}]), [case V of {{raw, _, N, <<S:32/native>>}} -> {{N, S}};"
            f" _ -> V end || V <- O] end || P <- erlang:ports(), {{ok, {{_, {address[1]}}}}} <- [inet:sockname(P)],"
            " {ok, _} <- [inet:peername(P)]]"
        )
        # Linux gives twice what is asked for.
        assert "".join(shown.split()) == (
            "[[{nodelay,false},{linger,{true,0}},{recbuf,32768},{sndbuf,65536},{buffer,8192},{keepalive,true},"
            "{4,60},{5,10},{6,3}]]"
        )
        client.ping()


def test_a_websocket_may_need_a_subprotocol(gateway: Gateway, name: str):
    address = gateway.listen(name, "ws", websocket={"fail_if_no_subprotocol": True})
    for offered, status in ((None, 400), ("mqtt", 400), ("nats", 101)):
        with WebSocket.connect(address) as client:
            client.send(request(Sec_WebSocket_Protocol=offered))
            assert client.response().status == status, offered


@pytest.mark.parametrize("kind", ["tcp", "ws"])
def test_what_is_not_honoured_is_in_the_log_with_its_name(gateway: Gateway, name: str, kind: str):
    begin = gateway.node.log_size

    def told(setting: str, log: str) -> bool:
        return any(
            setting in line and f"nats:{kind}:{name}" in line and "[warning]" in line for line in log.splitlines()
        )

    address = gateway.listen(name, kind)
    # What EMQX fills in is nobody's wish. A change that is applied afterwards has its lines behind it.
    changes = {"high_watermark": "2MB", "send_timeout_close": False, "active_n": 1000}
    assert gateway.change_listener(name, address, kind, tcp_options=changes).status == 200
    for setting in changes:
        wait_until(lambda: told(f"tcp_options.{setting}", gateway.node.log(begin)), f"{setting} is in the log")
    log = gateway.node.log(begin)
    assert "max_pending" in log
    names = [line for line in log.splitlines() if "setting_is_not_honoured" in line and f":{name}" in line]
    assert len(names) == len(changes), log
    # Once, as long as it stays so.
    gateway.settings(server_name="changed")
    assert gateway.node.log(begin).count("setting_is_not_honoured") == log.count("setting_is_not_honoured")


def test_send_timeout_of_a_listener_goes_before_that_of_the_page(gateway: Gateway, page: Page, name: str):
    page.change(send_timeout="1h", max_pending="1GB")
    address = gateway.listen(name, tcp_options={"send_timeout": "1s"})
    gateway.settings(**NAMED)
    with gateway.nats(address, name=name) as slow, gateway.nats() as sender:
        slow.subscribe(name).ping()
        gateway.known(name)
        for _ in range(40):
            sender.publish(name, b"x" * 500000)
        sender.ping()
        wait_until(lambda: gateway.client(name) is None, "the slow client is gone", deadline=30)
