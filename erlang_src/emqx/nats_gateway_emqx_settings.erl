%% What the plugin does with each setting that EMQX has for the gateway `nats' and its listeners. If
%% a setting is not honoured, the log says so, and says what holds in its place. The same goes for
%% settings that only a newer EMQX knows.
-module(nats_gateway_emqx_settings).

-export([gateway/0, listener/1]).
-export([not_honoured/2]).

-export_type([table/0, fate/0, refusal/0]).

-type table() :: #{Key :: atom() => fate()}.

-type fate() ::
    honoured
    %% the settings below it decide
    | table()
    %% its value does not matter: clients and operators cannot see a difference
    | {without_effect, Why :: binary()}
    %% refused, except for values that EMQX fills in, and values that mean what the plugin does
    %% anyway
    | {refused, IsHarmless :: fun((Value :: term()) -> boolean()), Instead :: binary()}.

-type refusal() :: #{setting := binary(), value => term(), instead := binary()}.

%% The values that EMQX fills in. Versions differ.
-define(ACTIVE_N, 100).
-define(HIGH_WATERMARK, 1048576).
-define(WEBSOCKET_IDLE_MS, 7200000).
-define(WINDOW_BITS, 15).

%% The settings under `gateway.nats'.
-spec gateway() -> table().
gateway() ->
    #{
        enable => honoured,
        enable_stats => honoured,
        server_id => honoured,
        server_name => honoured,
        default_heartbeat_interval => honoured,
        heartbeat_wait_timeout => honoured,
        idle_timeout => honoured,
        mountpoint => honoured,
        authentication => honoured,
        internal_authn => honoured,
        protocol => #{max_payload_size => honoured},
        clientinfo_override => #{clientid => honoured, username => honoured, password => honoured},
        %% each by `listener/1'
        listeners => honoured
    }.

-spec listener(Type :: tcp | ssl | ws | wss) -> table().
listener(tcp) ->
    #{
        enable => honoured,
        bind => honoured,
        acceptors => honoured,
        max_connections => honoured,
        max_conn_rate => honoured,
        access_rules => honoured,
        proxy_protocol => honoured,
        proxy_protocol_timeout => honoured,
        enable_authn => honoured,
        authentication => honoured,
        mountpoint => honoured,
        tcp_options => tcp_options()
    };
listener(ssl) ->
    (listener(tcp))#{ssl_options => ssl_options()};
listener(ws) ->
    (listener(tcp))#{websocket => websocket()};
listener(wss) ->
    (listener(ssl))#{websocket => websocket()}.

%% `nats_gateway_emqx_config:esockd_options/1' and `options/5' honour these. They also say what
%% EMQX's defaults mean.
tcp_options() ->
    Most = nats_gateway_transport:max_active_n(),
    #{
        backlog => honoured,
        buffer => honoured,
        keepalive => honoured,
        nodelay => honoured,
        nolinger => honoured,
        recbuf => honoured,
        reuseaddr => honoured,
        send_timeout => honoured,
        sndbuf => honoured,
        active_n =>
            {refused, fun(N) -> (N >= 1 andalso N =< Most) orelse N =:= ?ACTIVE_N end,
                <<"it is ", (integer_to_binary(Most))/binary>>},
        high_watermark =>
            {refused, fun(Bytes) -> Bytes =:= ?HIGH_WATERMARK end,
                <<"max_pending of the plugin's page bounds what waits for a client">>},
        send_timeout_close =>
            {refused, fun(Close) -> Close end,
                <<"a client that takes nothing within send_timeout is closed">>}
    }.

%% EMQX turns these into options of OTP. `nats_gateway_emqx_config:tls/4' looks at those that are no
%% options of a handshake.
ssl_options() ->
    Honoured = [
        cacertfile, cacerts, certfile, keyfile, password, managed_certs,
        verify, verify_peer_ext_key_usage, partial_chain, fail_if_no_peer_cert, depth, enable_crl_check,
        versions, ciphers, honor_cipher_order, dhfile, user_lookup_fun,
        secure_renegotiate, client_renegotiation, reuse_sessions, session_tickets,
        handshake_timeout, hibernate_after, log_level
    ],
    (maps:from_keys(Honoured, honoured))#{
        gc_after_handshake => {without_effect, <<"memory is collected after each handshake">>},
        ocsp =>
            {refused, fun(Ocsp) -> not maps:get(enable_ocsp_stapling, Ocsp, false) end,
                <<"certificates are shown without an OCSP response">>}
    }.

%% `nats_gateway_emqx_config:websocket/2' honours these.
websocket() ->
    #{
        path => honoured,
        compress => honoured,
        max_frame_size => honoured,
        check_origin_enable => honoured,
        check_origins => honoured,
        allow_origin_absence => honoured,
        supported_subprotocols => honoured,
        fail_if_no_subprotocol => honoured,
        proxy_address_header => honoured,
        proxy_port_header => honoured,
        deflate_opts => #{
            level => honoured,
            mem_level => honoured,
            strategy => honoured,
            server_context_takeover => no_context(),
            client_context_takeover => no_context(),
            server_max_window_bits => window_bits(),
            client_max_window_bits => window_bits()
        },
        piggyback => {without_effect, <<"frames carry one stream of bytes">>},
        idle_timeout =>
            {refused, fun(Ms) -> Ms =:= ?WEBSOCKET_IDLE_MS end,
                <<"default_heartbeat_interval and heartbeat_wait_timeout find out who is gone">>}
    }.

no_context() -> {without_effect, <<"each message is compressed by itself">>}.

window_bits() ->
    {refused, fun(Bits) -> Bits =:= ?WINDOW_BITS end,
        <<"the window has 15 bits, or what the client asks for">>}.

%% `Settings' are as EMQX has checked them, so they have all keys that EMQX knows.
-spec not_honoured(table(), Settings :: map()) -> [refusal()].
not_honoured(Table, Settings) ->
    lists:sort(
        fun(#{setting := A}, #{setting := B}) -> A =< B end, walk(Table, Settings, <<>>)
    ).

walk(Table, Settings, Above) ->
    lists:flatmap(
        fun({Key, Value}) ->
            judge(maps:get(Key, Table, unknown), <<Above/binary, (name(Key))/binary>>, Value)
        end,
        maps:to_list(Settings)
    ).

judge(_, _, undefined) ->
    [];
judge(honoured, _, _) ->
    [];
judge({without_effect, _}, _, _) ->
    [];
judge(Table, Name, Settings) when is_map(Table), is_map(Settings) ->
    walk(Table, Settings, <<Name/binary, ".">>);
judge({refused, IsHarmless, Instead}, Name, Value) ->
    case IsHarmless(Value) of
        true -> [];
        false -> [#{setting => Name, value => Value, instead => Instead}]
    end;
judge(_, Name, _) ->
    %% Its value may be a secret.
    [#{setting => Name, instead => <<"this version of the plugin does not know it">>}].

name(Key) when is_atom(Key) -> atom_to_binary(Key);
name(Key) -> unicode:characters_to_binary(Key).
