%% The settings of a gateway in the form that its connections use. They have three sources: the
%% standalone gateway's file (nats_gateway_file), and in EMQX the gateway's own settings and the
%% plugin's page (nats_gateway_emqx_config, nats_gateway_emqx_page).
-module(nats_gateway_config).

-export([schema/0]).
-export([defaults/0]).
-export([identity/0]).

-export_type([config/0, listener/0]).

%% docs/protocol.md section 1: sizes have at most 9 digits.
-define(MAX_SIZE, 999999999).
%% An MQTT packet has at most 268435455 bytes after its fixed header. 256 KiB of them are for the
%% topic, the response topic, correlation data and their properties. The rest is for the payload.
-define(MAX_PAYLOAD, 268435455 - 262144).

-define(AUTHENTICATION_TIMEOUT_MS, 2000).

%% Times are in milliseconds, sizes in bytes.
-type config() :: #{
    server_id := binary(),
    %% only this gateway knows it, and makes a new one at every start
    secret := binary(),
    server_name := binary(),
    mountpoint := binary(),
    default_heartbeat_interval := pos_integer() | infinity,
    heartbeat_wait_timeout := pos_integer(),
    idle_timeout := pos_integer() | infinity,
    %% a listener may have its own value
    authentication_timeout := pos_integer(),
    auth_required := boolean(),
    %% the gateway's own login, which comes before the broker's
    login := nats_gateway_login:login(),
    %% who may ask below `$SYS.REQ.SERVER'
    system := nats_gateway_system_access:access(),
    max_payload_size := non_neg_integer(),
    max_control_line := pos_integer(),
    max_subscriptions := pos_integer() | infinity,
    %% how many tokens the subject of a SUB may have
    max_sub_tokens := pos_integer() | infinity,
    %% slow consumers: the bytes that may wait for a client, and the time in which it must take some
    max_pending := pos_integer(),
    send_timeout := pos_integer(),
    %% standalone only: how long clients stay after they were told to go elsewhere
    lame_duck_grace_period := non_neg_integer(),
    lame_duck_duration := pos_integer(),
    retained_on_subscribe := boolean(),
    enable_stats := boolean(),
    %% whether headers set the properties of a PUBLISH, and tell those of a delivery
    publish_properties := boolean(),
    show_properties := boolean(),
    %% devices that answer on a topic of their own
    devices := nats_gateway_device_config:devices(),
    clientinfo_override := #{clientid | username | password => binary()},
    log_level := logger:level(),
    %% absent means off
    presence => nats_gateway_presence:settings(),
    upstream := #{
        host := string() | inet:ip_address(),
        port := inet:port_number(),
        tls := none | [ssl:tls_client_option()],
        connect_timeout := pos_integer(),
        keepalive := pos_integer(),
        max_topic_levels := pos_integer() | infinity,
        %% the largest packet from the broker; `default' is large enough for any NATS message
        max_packet_size := pos_integer() | default,
        %% whether the gateway probes what it relies on
        probe := boolean(),
        authentication := boolean()
    },
    %% the prefix of each bucket of the key/value store
    kv => off | #{binary() => binary()},
    %% where there is a store: settings that are the same have the same one
    digest => non_neg_integer(),
    %% rules that map subjects; absent means none
    mappings => nats_gateway_nif:mappings(),
    %% connections do not have these keys
    listeners => [listener()],
    %% where the standalone gateway tells what nats-server's monitoring endpoints tell
    monitor => undefined | {inet:ip_address(), inet:port_number()},
    %% the path of the socket of `nats_gateway ctl'
    control => undefined | binary(),
    log_format => text | json,
    log_file => undefined | binary(),
    %% the settings of the host itself, which nobody else reads
    host => map()
}.

-type listener() :: #{
    %% `type:name'
    name := binary(),
    type := tcp | ssl | ws | wss,
    bind := {inet:ip_address(), inet:port_number()},
    acceptors := pos_integer(),
    max_connections := pos_integer() | infinity,
    backlog := pos_integer(),
    send_timeout := pos_integer(),
    authentication_timeout := pos_integer(),
    %% only listeners with TLS
    tls => nats_gateway_tls:settings(),
    peer_cert_as_username => nats_gateway_certificate:name(),
    %% only listeners with WebSocket
    websocket => nats_gateway_websocket:settings()
}.

%% The settings that every gateway has. These defaults are defined only here.
-spec schema() -> nats_gateway_schema:schema().
schema() ->
    #{
        server_name => {string, <<"nats_gateway">>},
        mountpoint => {string, <<>>},
        default_heartbeat_interval => {{duration, 0}, 30000},
        heartbeat_wait_timeout => {{duration, 1}, 5000},
        idle_timeout => {{duration, 0}, 30000},
        authentication_timeout => {{duration, 1}, ?AUTHENTICATION_TIMEOUT_MS},
        auth_required => {boolean, false},
        max_payload_size => {{bytes, 0, ?MAX_PAYLOAD}, 1048576},
        max_control_line => {{bytes, 1, ?MAX_SIZE}, 4096},
        max_subscriptions => {{limit, 1 bsl 30}, 100000},
        max_sub_tokens => {{limit, 255}, infinity},
        max_pending => {{bytes, 1024, 1 bsl 30}, 64 bsl 20},
        send_timeout => {{duration, 1}, 10000},
        retained_on_subscribe => {boolean, false},
        enable_stats => {boolean, true},
        publish_properties => {boolean, false},
        show_properties => {boolean, false}
    }.

%% The settings of a gateway, without its login, when nothing is set.
-spec defaults() -> map().
defaults() ->
    {ok, Settings} = nats_gateway_schema:check(schema(), #{}),
    Settings.

%% The identity is new at every start.
-spec identity() -> #{server_id := binary(), secret := binary()}.
identity() -> #{server_id => server_id(), secret => crypto:strong_rand_bytes(32)}.

%% The id looks like the NKey of a nats-server. It is another one after each start.
server_id() ->
    Alphabet = <<"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567">>,
    Random = crypto:strong_rand_bytes(55),
    <<"N", <<<<(binary:at(Alphabet, Byte band 31))>> || <<Byte>> <= Random>>/binary>>.
