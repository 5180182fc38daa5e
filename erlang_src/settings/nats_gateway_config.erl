%% Makes one checked map of the file's tables, with every default filled in.
%%
%% Names are those of EMQX's gateway settings. docs/standalone.md has the units and the defaults.
-module(nats_gateway_config).

-export([parse/1]).
-export([defaults/0]).
-export([check/2]).
-export([valid/1]).
-export([invalid/2]).
-export([tls_page_schema/1]).
-export([websocket_page_schema/0]).
-export([check_tls_page/1]).

-export_type([config/0, listener/0, schema/0]).

%% Times are milliseconds, sizes bytes.
-type config() :: #{
    server_id := binary(),
    %% only this gateway knows it, and makes a new one at every start
    secret := binary(),
    server_name := binary(),
    mountpoint := binary(),
    default_heartbeat_interval := pos_integer() | infinity,
    heartbeat_wait_timeout := pos_integer(),
    idle_timeout := pos_integer() | infinity,
    %% a listener may have one of its own
    authentication_timeout := pos_integer(),
    auth_required := boolean(),
    %% the gateway's own login, which comes before the broker's
    login := nats_gateway_login:login(),
    max_payload_size := non_neg_integer(),
    max_control_line := pos_integer(),
    max_subscriptions := pos_integer() | infinity,
    %% tokens of the subject of a SUB
    max_sub_tokens := pos_integer() | infinity,
    %% slow consumers: the bytes that may wait for a client, and the time in which it must take some
    max_pending := pos_integer(),
    send_timeout := pos_integer(),
    %% standalone: the time that clients stay after they were told to go elsewhere
    lame_duck_grace_period := non_neg_integer(),
    lame_duck_duration := pos_integer(),
    retained_on_subscribe := boolean(),
    enable_stats := boolean(),
    clientinfo_override := #{clientid | username | password => binary()},
    log_level := logger:level(),
    upstream := #{
        host := string() | inet:ip_address(),
        port := inet:port_number(),
        tls := none | [ssl:tls_client_option()],
        connect_timeout := pos_integer(),
        keepalive := pos_integer(),
        max_topic_levels := pos_integer() | infinity,
        %% size of the broker's packets; `default': large enough for any NATS message
        max_packet_size := pos_integer() | default,
        %% whether the gateway tries out what it relies on
        probe := boolean(),
        authentication := boolean()
    },
    %% connections do not have this key
    listeners => [listener()],
    %% only connections in EMQX have these keys
    emqx => map(),
    enable_authn => boolean(),
    auto_subscribe => boolean()
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
    %% listeners with TLS
    tls => nats_gateway_tls:settings(),
    peer_cert_as_username => nats_gateway_certificate:name(),
    %% listeners with WebSocket
    websocket => nats_gateway_websocket:settings()
}.

%% docs/protocol.md section 1: sizes have at most 9 digits.
-define(MAX_SIZE, 999999999).
%% An MQTT packet has at most 268435455 bytes behind its fixed header. 256 KiB of them are for a
%% topic, a response topic, correlation data and their properties, the others for the payload.
-define(MAX_PAYLOAD, 268435455 - 262144).

-define(AUTHENTICATION_TIMEOUT_MS, 2000).
%% One day.
-define(MAX_LAME_DUCK_MS, 86400000).
%% The error text for a page that shows its secrets.
-define(SHOWN, <<
    "must be a bcrypt hash, or file:// and the path of a file with the secret: "
    "EMQX shows these settings to all who may read them"
>>).
-define(TLS_VERSIONS, ['tlsv1.3', 'tlsv1.2']).

-type kind() ::
    string
    | boolean
    | {duration, Min :: 0 | 1}
    | {duration, Min :: 0 | 1, Max :: pos_integer()}
    | {bytes, Min :: non_neg_integer(), Max :: pos_integer()}
    | {integer, Min :: integer(), Max :: pos_integer()}
    %% 0 is no limit
    | {limit, Max :: pos_integer()}
    | address
    | url
    | {one_of, [atom()]}
    %% a list of some of these names, at least one
    | {some_of, [atom()]}
    %% an absolute path of a URL
    | path
    | origins
    %% names of HTTP: of a cookie, of a header; <<>> is none
    | token
    | header
    | {table, schema()}
    %% a table of tables, all of this schema, under any names
    | {named, schema()}
    | {list, kind()}
    %% a table whose key `type' chooses the schema
    | {by_type, #{atom() => schema()}}
    %% a password or token, its bcrypt hash, or a file with either
    | secret
    %% a secret on a page that shows it: a plain one is refused, an empty one is none
    | shown_secret
    %% a public NKey of a user
    | user_key
    %% a subject, a list of subjects, or a table of `allow' and `deny'
    | {subjects, queues | no_queues}
    | responses.

%% The default `required': the setting must be there. `undefined': it has no default.
-type schema() :: #{atom() => {kind(), Default :: term()}}.

-spec schema() -> schema().
schema() ->
    (nats_gateway_login_config:file_schema())#{
        server_name => {string, <<"nats_gateway">>},
        mountpoint => {string, <<>>},
        default_heartbeat_interval => {{duration, 0}, 30000},
        heartbeat_wait_timeout => {{duration, 1}, 5000},
        idle_timeout => {{duration, 0}, 30000},
        authentication_timeout => {{duration, 1}, default},
        auth_required => {boolean, false},
        max_payload_size => {{bytes, 0, ?MAX_PAYLOAD}, 1048576},
        max_control_line => {{bytes, 1, ?MAX_SIZE}, 4096},
        max_connections => {{limit, 1 bsl 30}, infinity},
        max_subscriptions => {{limit, 1 bsl 30}, 100000},
        max_sub_tokens => {{limit, 255}, infinity},
        max_pending => {{bytes, 1024, 1 bsl 30}, 64 bsl 20},
        send_timeout => {{duration, 1}, 10000},
        lame_duck_grace_period => {{duration, 0, ?MAX_LAME_DUCK_MS}, 10000},
        lame_duck_duration => {{duration, 1, ?MAX_LAME_DUCK_MS}, 120000},
        retained_on_subscribe => {boolean, false},
        enable_stats => {boolean, true},
        log_level =>
            {
                {one_of, [emergency, alert, critical, error, warning, notice, info, debug, none]},
                notice
            },
        clientinfo_override =>
            {
                {table, #{
                    clientid => {string, <<"${generated}">>},
                    username => {string, undefined},
                    password => {string, undefined}
                }},
                #{}
            },
        upstream =>
            {
                {table, #{
                    url => {url, {tcp, "127.0.0.1", 1883}},
                    ssl_options => {{table, upstream_tls_schema()}, #{}},
                    connect_timeout => {{duration, 1}, 5000},
                    authentication => {boolean, false},
                    probe => {boolean, true},
                    max_packet_size => {{bytes, 1024, 268435460}, default},
                    %% Mosquitto's limit. EMQX's is 128.
                    max_topic_levels => {{limit, 65535}, 200},
                    keepalive => {{integer, 1, 65535}, 60}
                }},
                #{}
            },
        listeners =>
            {
                {table, #{
                    tcp => {{named, listener_schema()}, #{}},
                    ssl => {{named, maps:merge(listener_schema(), tls_schema())}, #{}},
                    ws => {{named, websocket_listener_schema(8080)}, #{}},
                    wss =>
                        {
                            {named,
                                maps:merge(
                                    websocket_listener_schema(8443),
                                    %% Below HTTP there is only one way to begin TLS.
                                    maps:with([ssl_options, peer_cert_as_username], tls_schema())
                                )},
                            #{}
                        }
                }},
                #{}
            }
    }.

%% TLS of the connections to the broker.
upstream_tls_schema() ->
    #{
        verify => {{one_of, [verify_none, verify_peer]}, verify_peer},
        cacertfile => {string, <<"/etc/ssl/certs/ca-certificates.crt">>},
        certfile => {string, undefined},
        keyfile => {string, undefined},
        password => {string, undefined},
        %% needed if the certificate has another name than the host of the URL
        server_name_indication => {string, undefined},
        versions => {{some_of, ?TLS_VERSIONS}, ?TLS_VERSIONS}
    }.

listener_schema() ->
    #{
        bind => {address, {{127, 0, 0, 1}, 4222}},
        acceptors => {{integer, 1, 1024}, 16},
        max_connections => {{limit, 1 bsl 30}, infinity},
        backlog => {{integer, 1, 65535}, 1024},
        proxy_protocol => {boolean, false},
        proxy_protocol_timeout => {{duration, 1}, 3000}
    }.

%% The names are EMQX's. Settings that EMQX does not have are named as in nats-server.
websocket_listener_schema(Port) ->
    (listener_schema())#{
        bind => {address, {{127, 0, 0, 1}, Port}},
        websocket =>
            {
                {table, #{
                    path => {path, undefined},
                    same_origin => {boolean, false},
                    allowed_origins => {origins, []},
                    allow_origin_absence => {boolean, true},
                    supported_subprotocols => {{list, string}, []},
                    compress => {boolean, false},
                    max_frame_size => {{limit, ?MAX_SIZE}, infinity},
                    handshake_timeout => {{duration, 1}, 5000},
                    jwt_cookie => {token, undefined},
                    proxy_address_header => {header, undefined},
                    proxy_port_header => {header, undefined}
                }},
                #{}
            }
    }.

%% The same for WebSocket.
-spec websocket_page_schema() -> schema().
websocket_page_schema() ->
    #{
        websocket_same_origin => {boolean, false},
        websocket_jwt_cookie => {token, undefined}
    }.

%% The settings that make a TLS listener. The names of `ssl_options' are EMQX's.
tls_schema() ->
    (tls_page_schema(upgrade))#{
        ssl_options =>
            {
                {table, #{
                    certfile => {string, undefined},
                    %% the certificate's file may hold the key
                    keyfile => {string, undefined},
                    password => {string, undefined},
                    cacertfile => {string, undefined},
                    verify => {{one_of, [verify_none, verify_peer]}, verify_none},
                    fail_if_no_peer_cert => {boolean, false},
                    depth => {{integer, 0, 255}, 10},
                    versions => {{some_of, ?TLS_VERSIONS}, ?TLS_VERSIONS},
                    ciphers => {{list, string}, []},
                    handshake_timeout => {{duration, 1}, 2000},
                    hibernate_after => {{duration, 1}, 5000}
                }},
                #{}
            }
    }.

%% Settings that EMQX has no names for. In EMQX they are on the plugin's own page.
-spec check_tls_page(map()) -> ok | {error, Text :: binary()}.
check_tls_page(Settings) ->
    case valid(fun() -> check_mode(Settings, []) end) of
        {ok, ok} -> ok;
        {error, Text} -> {error, Text}
    end.

-spec tls_page_schema(DefaultMode :: nats_gateway_tls:mode()) -> schema().
tls_page_schema(DefaultMode) ->
    #{
        tls_mode => {{one_of, [upgrade, handshake_first, auto]}, DefaultMode},
        allow_non_tls => {boolean, false},
        handshake_first_wait => {{duration, 1}, 50},
        peer_cert_as_username =>
            {{one_of, [disabled, cn, dn, san_email, san_dns, san_uri]}, disabled}
    }.

%% The settings of an empty file.
-spec defaults() -> config().
defaults() ->
    {ok, Config} = parse(#{}),
    Config.

%% Takes the tables of a file as `nats_gateway_mqtt_nif:toml/1' gives them, with binary keys.
-spec parse(map()) -> {ok, config()} | {error, Text :: binary()}.
parse(Tables) ->
    valid(fun() -> finish(table(schema(), Tables, [])) end).

%% The settings of a schema. Those that are absent have their defaults.
-spec check(schema(), map()) -> {ok, map()} | {error, Text :: binary()}.
check(Schema, Tables) -> valid(fun() -> table(Schema, Tables, []) end).

%% Calls a function that may call `invalid/2'.
-spec valid(fun(() -> Result)) -> {ok, Result} | {error, Text :: binary()}.
valid(Fun) ->
    try
        {ok, Fun()}
    catch
        throw:{invalid, Path, Problem} ->
            {error, iolist_to_binary([path(Path), <<": ">>, Problem])}
    end.

finish(Settings = #{upstream := Upstream, listeners := Listeners}) ->
    {Scheme, Host, Port} = maps:get(url, Upstream),
    Login = nats_gateway_login_config:of_file(Settings, maps:get(authentication, Upstream)),
    ok = check_cookies(Listeners, Login),
    NotKept = [max_connections | nats_gateway_login_config:file_keys()],
    (maps:without(NotKept, Settings))#{
        login => Login,
        auth_required := nats_gateway_login:auth_required(Login, maps:get(auth_required, Settings)),
        server_id => server_id(),
        secret => crypto:strong_rand_bytes(32),
        authentication_timeout :=
            authentication_timeout(Settings, ?AUTHENTICATION_TIMEOUT_MS),
        upstream := (maps:without([url, ssl_options], Upstream))#{
            host => Host, port => Port, tls => upstream_tls(Scheme, Host, Upstream)
        },
        listeners := [
            listener(Type, Name, Listener, Settings)
         || {Type, Named} <- listeners(Listeners),
            {Name, Listener} <- lists:sort(maps:to_list(Named))
        ]
    }.

upstream_tls(tcp, _, #{ssl_options := #{certfile := undefined}}) ->
    none;
upstream_tls(tcp, _, _) ->
    invalid([<<"ssl_options">>, <<"upstream">>], <<"need an mqtts:// URL">>);
upstream_tls(ssl, Host, #{ssl_options := Ssl = #{verify := Verify, versions := Versions}}) ->
    Files = [
        {Name, binary_to_list(File)}
     || {Name, File} <- maps:to_list(maps:with([certfile, keyfile, password], Ssl)),
        File =/= undefined
    ],
    Verification =
        case Verify of
            verify_peer ->
                [
                    {cacertfile, maps:get(cacertfile, Ssl)},
                    {customize_hostname_check, [
                        {match_fun, public_key:pkix_verify_hostname_match_fun(https)}
                    ]}
                ];
            verify_none ->
                []
        end,
    %% The host logs why a connection failed.
    [{log_level, none}, {verify, Verify}, {versions, Versions}] ++
        server_name(Host, maps:get(server_name_indication, Ssl)) ++ Verification ++ Files.

server_name(_, Name) when is_binary(Name) ->
    [{server_name_indication, binary_to_list(Name)}];
server_name(Host, undefined) ->
    case inet:parse_strict_address(Host) of
        %% The certificate is verified by the address that we connect to.
        {ok, _} -> [];
        {error, _} -> [{server_name_indication, Host}]
    end.

listeners(Listeners) ->
    case lists:all(fun(Named) -> map_size(Named) =:= 0 end, maps:values(Listeners)) of
        true -> [{tcp, #{<<"default">> => table(listener_schema(), #{}, [])}}];
        false -> [{Type, maps:get(Type, Listeners)} || Type <- [tcp, ssl, ws, wss]]
    end.

listener(Type, Name, Listener, Settings = #{max_connections := Max}) ->
    Id = <<(atom_to_binary(Type))/binary, $:, Name/binary>>,
    Common = (maps:with(maps:keys(listener_schema()), Listener))#{
        name => Id,
        type => Type,
        max_connections := min(Max, maps:get(max_connections, Listener)),
        authentication_timeout => authentication_timeout(Settings, ?AUTHENTICATION_TIMEOUT_MS)
    },
    case Type of
        tcp ->
            Common;
        ssl ->
            Tls =
                #{handshake_timeout := HandshakeTimeout} =
                tls(Id, Listener, [Name, <<"ssl">>, <<"listeners">>]),
            Common#{
                tls => Tls,
                peer_cert_as_username => maps:get(peer_cert_as_username, Listener),
                %% as in nats-server
                authentication_timeout := authentication_timeout(Settings, HandshakeTimeout + 1000)
            };
        ws ->
            Common#{websocket => websocket(Listener)};
        wss ->
            First = #{
                tls_mode => handshake_first, allow_non_tls => false, handshake_first_wait => 1
            },
            Common#{
                tls => tls(Id, maps:merge(Listener, First), [Name, <<"wss">>, <<"listeners">>]),
                peer_cert_as_username => maps:get(peer_cert_as_username, Listener),
                websocket => websocket(Listener)
            }
    end.

websocket(#{websocket := Settings = #{supported_subprotocols := Subprotocols}}) ->
    maps:filter(
        fun(_, Value) -> Value =/= undefined end,
        (maps:remove(supported_subprotocols, Settings))#{
            subprotocols => lists:map(fun string:lowercase/1, Subprotocols)
        }
    ).

%% If the cookie held a bearer token, any page that its owner visits could log in as the owner.
check_cookies(Listeners, Login) ->
    Open = [
        [<<"jwt_cookie">>, <<"websocket">>, Name, atom_to_binary(Type), <<"listeners">>]
     || {Type, Named} <- listeners(Listeners),
        Type =:= ws orelse Type =:= wss,
        {Name, Listener} <- maps:to_list(Named),
        nats_gateway_websocket:is_open_to_any_page(websocket(Listener))
    ],
    case nats_gateway_login:takes_bearer_tokens(Login) of
        true when Open =/= [] ->
            invalid(hd(Open), [
                <<"needs same_origin or allowed_origins, as long as an account does not have ">>,
                <<"disallow_bearer: any web page could log in as its visitor">>
            ]);
        _ ->
            ok
    end.

authentication_timeout(#{authentication_timeout := default}, Default) -> Default;
authentication_timeout(#{authentication_timeout := Timeout}, _) -> Timeout.

tls(Id, #{ssl_options := Ssl, tls_mode := Mode} = Listener, Path) ->
    #{
        certfile := CertFile,
        keyfile := KeyFile,
        cacertfile := CaFile,
        password := Password,
        verify := Verify,
        fail_if_no_peer_cert := FailIfNone,
        handshake_timeout := HandshakeTimeout
    } = Ssl,
    SslPath = [<<"ssl_options">> | Path],
    CertFile =/= undefined orelse
        invalid([<<"certfile">> | SslPath], <<"is needed: the server's certificate, a PEM file">>),
    Verify =:= verify_none orelse CaFile =/= undefined orelse
        invalid(
            [<<"cacertfile">> | SslPath],
            <<"is needed: who signs the certificates of the clients, a PEM file">>
        ),
    Verify =:= verify_none andalso FailIfNone andalso
        invalid([<<"fail_if_no_peer_cert">> | SslPath], <<"needs verify = \"verify_peer\"">>),
    check_mode(Listener, Path),
    Common = maps:with([allow_non_tls, handshake_first_wait], Listener),
    Files = maps:filter(fun(_, File) -> File =/= undefined end, #{
        certfile => CertFile,
        keyfile =>
            case KeyFile of
                undefined -> CertFile;
                _ -> KeyFile
            end,
        cacertfile => CaFile,
        password =>
            case Password of
                undefined -> undefined;
                _ -> fun() -> Password end
            end
    }),
    maps:merge(maps:merge(Common, Files), #{
        listener => Id,
        key => Id,
        mode => Mode,
        handshake_timeout => HandshakeTimeout,
        verify => Verify,
        options => ssl_options(Ssl, SslPath)
    }).

check_mode(#{tls_mode := handshake_first, allow_non_tls := true}, Path) ->
    invalid([<<"allow_non_tls">> | Path], <<"must be false where tls_mode is handshake_first">>);
check_mode(_, _) ->
    ok.

ssl_options(Ssl = #{versions := Versions, ciphers := Ciphers}, Path) ->
    [{Name, maps:get(Name, Ssl)} || Name <- [verify, fail_if_no_peer_cert, depth, hibernate_after]] ++
        %% The connection logs why a handshake failed.
        [
            {log_level, none},
            {versions, Versions}
            | [{ciphers, cipher_suites(Ciphers, Path)} || Ciphers =/= []]
        ] ++
        %% As in nats-server: a few bytes of a client would make the gateway work, again and again.
        [{client_renegotiation, false} || lists:member('tlsv1.2', Versions)].

cipher_suites(Names, Path) ->
    lists:map(
        fun(Name) ->
            case nats_gateway_tls:cipher_suite(Name) of
                {ok, Suite} ->
                    Suite;
                error ->
                    invalid([<<"ciphers">> | Path], [Name, <<" is not a cipher suite of TLS">>])
            end
        end,
        Names
    ).

%% Looks like the NKey of a nats-server. It is another one after each start.
server_id() ->
    Alphabet = <<"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567">>,
    Random = crypto:strong_rand_bytes(55),
    <<"N", <<<<(binary:at(Alphabet, Byte band 31))>> || <<Byte>> <= Random>>/binary>>.

table(Schema, Values, Path) when is_map(Values) ->
    Names = maps:from_list([{atom_to_binary(Name), Name} || Name <- maps:keys(Schema)]),
    case [Key || Key <- lists:sort(maps:keys(Values)), not is_map_key(Key, Names)] of
        [] ->
            maps:map(
                fun(Name, {Kind, Default}) ->
                    Key = atom_to_binary(Name),
                    case Values of
                        #{Key := Value} -> value(Kind, Value, [Key | Path]);
                        #{} -> default(Kind, Default, [Key | Path])
                    end
                end,
                Schema
            );
        [Key | _] ->
            invalid([Key | Path], [<<"unknown key; known here: ">>, known(Schema)])
    end;
table(_, _, Path) ->
    invalid(Path, <<"must be a table">>).

known(Schema) ->
    lists:join(<<", ">>, lists:sort([atom_to_binary(Name) || Name <- maps:keys(Schema)])).

default(_, required, Path) -> invalid(Path, <<"is missing">>);
default(Kind = {table, _}, Default, Path) -> value(Kind, Default, Path);
default(_, Default, _) -> Default.

value({table, Schema}, Value, Path) ->
    table(Schema, Value, Path);
value({named, Schema}, Value, Path) when is_map(Value) ->
    maps:map(fun(Name, Entry) -> table(Schema, Entry, [Name | Path]) end, Value);
value({named, _}, _, Path) ->
    invalid(Path, <<"must be a table of named tables">>);
value({list, Kind}, Values, Path) when is_list(Values) ->
    [value(Kind, Value, [N | Path]) || {N, Value} <- numbered(Values)];
value({list, _}, _, Path) ->
    invalid(Path, <<"must be a list">>);
value({by_type, Schemas}, Value, Path) when is_map(Value) ->
    Types = lists:sort(maps:keys(Schemas)),
    Type = value({one_of, Types}, maps:get(<<"type">>, Value, none), [<<"type">> | Path]),
    Table = table(maps:get(Type, Schemas), maps:remove(<<"type">>, Value), Path),
    Table#{type => Type};
value({by_type, _}, _, Path) ->
    invalid(Path, <<"must be a table">>);
value(secret, Value, Path) when is_binary(Value), Value =/= <<>> ->
    case nats_gateway_login:secret(Value) of
        {ok, Secret} -> Secret;
        {error, Problem} -> invalid(Path, secret_problem(Problem))
    end;
value(secret, _, Path) ->
    invalid(Path, <<"must be a string that is not empty">>);
value(shown_secret, <<>>, _) ->
    undefined;
value(shown_secret, Value, Path) when is_binary(Value) ->
    case nats_gateway_login:is_plain(Value) of
        false -> value(secret, Value, Path);
        true -> invalid(Path, ?SHOWN)
    end;
value(shown_secret, _, Path) ->
    invalid(Path, <<"must be a string">>);
value(user_key, Value, Path) ->
    case is_binary(Value) andalso nats_gateway_jwt:key(user, Value) of
        {ok, Key} -> Key;
        _ -> invalid(Path, <<"must be the public NKey of a user (U...)">>)
    end;
value({subjects, Queues}, Value, Path) when is_map(Value) ->
    Schema = #{allow => {{list, string}, all}, deny => {{list, string}, []}},
    Subjects = #{allow := Allow, deny := Deny} = table(Schema, Value, Path),
    _ = Allow =:= all orelse [subject(Queues, E, [N, <<"allow">> | Path]) || {N, E} <- numbered(Allow)],
    _ = [subject(Queues, Entry, [N, <<"deny">> | Path]) || {N, Entry} <- numbered(Deny)],
    _ = [
        invalid([<<"allow">> | Path], <<"must not be empty: leave it out, or deny \">\"">>)
     || Allow =:= []
    ],
    Subjects;
value(Kind = {subjects, _}, Value, Path) when is_binary(Value) ->
    value(Kind, [Value], Path);
value(Kind = {subjects, _}, Value, Path) when is_list(Value) ->
    value(Kind, #{<<"allow">> => Value}, Path);
value({subjects, _}, _, Path) ->
    invalid(Path, <<"must be a subject, a list of subjects, or a table with allow and deny">>);
value(responses, true, Path) ->
    value(responses, #{}, Path);
value(responses, false, _) ->
    undefined;
value(responses, Value, Path) when is_map(Value) ->
    table(#{max => {{limit, 1 bsl 30}, 1}, expires => {{duration, 0}, 120000}}, Value, Path);
value(responses, _, Path) ->
    invalid(Path, <<"must be true, false, or a table with max and expires">>);
value(string, Value, Path) ->
    case is_binary(Value) andalso binary:match(Value, <<0>>) =:= nomatch of
        true -> Value;
        false -> invalid(Path, <<"must be a string">>)
    end;
value(boolean, Value, Path) ->
    case is_boolean(Value) of
        true -> Value;
        false -> invalid(Path, <<"must be true or false">>)
    end;
value({duration, Min}, Value, Path) ->
    case duration(Value) of
        0 when Min =:= 0 -> infinity;
        %% the longest time that all timers of the runtime take
        Ms when is_integer(Ms), Ms >= 1, Ms =< 16#FFFFFFFF -> Ms;
        _ when Min =:= 0 -> invalid(Path, <<"must be a duration such as \"30s\"; 0 is never">>);
        _ -> invalid(Path, <<"must be a duration such as \"30s\", at least 1 ms">>)
    end;
value({duration, Min, Max}, Value, Path) ->
    case duration(Value) of
        Ms when is_integer(Ms), Ms >= Min, Ms =< Max ->
            Ms;
        _ ->
            invalid(Path, [
                <<"must be a duration such as \"1s\", from ">>,
                integer_to_binary(Min),
                <<" to ">>,
                integer_to_binary(Max),
                <<" ms">>
            ])
    end;
value({bytes, Min, Max}, Value, Path) ->
    case bytes(Value) of
        Bytes when is_integer(Bytes), Bytes >= Min, Bytes =< Max ->
            Bytes;
        _ ->
            invalid(Path, [
                <<"must be a size from ">>,
                integer_to_binary(Min),
                <<" to ">>,
                integer_to_binary(Max),
                <<" bytes, such as 1048576 or \"1MB\"">>
            ])
    end;
value({integer, Min, Max}, Value, _) when is_integer(Value), Value >= Min, Value =< Max ->
    Value;
value({integer, Min, Max}, _, Path) ->
    invalid(Path, [
        <<"must be an integer from ">>,
        integer_to_binary(Min),
        <<" to ">>,
        integer_to_binary(Max)
    ]);
value({limit, _}, 0, _) ->
    infinity;
value({limit, Max}, Value, _) when is_integer(Value), Value >= 1, Value =< Max ->
    Value;
value({limit, Max}, _, Path) ->
    invalid(Path, [
        <<"must be an integer from 0 (no limit) to ">>, integer_to_binary(Max)
    ]);
value(address, Value, Path) ->
    case address(Value) of
        {ok, Address} ->
            Address;
        error ->
            invalid(Path, <<"must be a port, or an address such as \"127.0.0.1:4222\"">>)
    end;
value(url, Value, Path) ->
    case url(Value) of
        {ok, Upstream} -> Upstream;
        error -> invalid(Path, <<
                "must be a URL such as \"mqtt://127.0.0.1:1883\" or \"mqtts://broker.example:8883\""
            >>)
    end;
value({some_of, Names}, Values, Path) when is_list(Values), Values =/= [] ->
    Chosen = [value({one_of, Names}, Value, Path) || Value <- Values],
    [Name || Name <- Names, lists:member(Name, Chosen)];
value({some_of, Names}, _, Path) ->
    invalid(Path, [
        <<"must be a list of some of ">>, lists:join(<<", ">>, [atom_to_binary(N) || N <- Names])
    ]);
value(path, Value, Path) ->
    case is_binary(Value) andalso re:run(Value, <<"\\A/[^?#\\s]*\\z">>, [{capture, none}]) of
        match -> Value;
        _ -> invalid(Path, <<"must be a path such as \"/nats\"">>)
    end;
value(origins, Values, Path) when is_list(Values) ->
    lists:map(
        fun(Value) ->
            case is_binary(Value) andalso nats_gateway_websocket:origin(Value) of
                {ok, Origin} -> Origin;
                _ -> invalid(Path, <<"must be a list of origins such as \"https://example.com\"">>)
            end
        end,
        Values
    );
value(origins, _, Path) ->
    invalid(Path, <<"must be a list of origins such as \"https://example.com\"">>);
value(token, <<>>, _) ->
    undefined;
value(token, Value, Path) ->
    Token = <<"\\A[!#$%&'*+.^_`|~0-9A-Za-z-]+\\z">>,
    case is_binary(Value) andalso re:run(Value, Token, [{capture, none}]) of
        match -> Value;
        _ -> invalid(Path, <<"must be a name without blanks and separators">>)
    end;
value(header, <<>>, _) ->
    undefined;
value(header, Value, Path) ->
    string:lowercase(value(token, Value, Path));
value({one_of, Names}, Value, Path) ->
    case [Name || Name <- Names, atom_to_binary(Name) =:= Value] of
        [Name] ->
            Name;
        [] ->
            invalid(Path, [
                <<"must be one of ">>, lists:join(<<", ">>, [atom_to_binary(N) || N <- Names])
            ])
    end.

%% An integer is milliseconds. A string has units: "1m30s".
duration(Ms) when is_integer(Ms) -> Ms;
duration(Text) when is_binary(Text) ->
    units(Text, [
        {<<"ms">>, 1}, {<<"s">>, 1000}, {<<"m">>, 60000}, {<<"h">>, 3600000}, {<<"d">>, 86400000}
    ]);
duration(_) ->
    error.

bytes(Bytes) when is_integer(Bytes) -> Bytes;
bytes(Text) when is_binary(Text) ->
    case re:run(Text, <<"^[0-9]{1,12}$">>, [{capture, none}]) of
        match ->
            binary_to_integer(Text);
        nomatch ->
            units(Text, [
                {<<"B">>, 1}, {<<"KB">>, 1024}, {<<"MB">>, 1048576}, {<<"GB">>, 1073741824}
            ])
    end;
bytes(_) ->
    error.

units(Text, Units) ->
    case re:run(Text, <<"^(?:\\s*([0-9]{1,12})\\s*([a-zA-Z]+))+\\s*$">>, [{capture, none}]) of
        match ->
            {match, Parts} = re:run(Text, <<"([0-9]+)\\s*([a-zA-Z]+)">>, [
                global, {capture, all_but_first, binary}
            ]),
            sum(Parts, Units, 0);
        nomatch ->
            error
    end.

sum([], _, Total) ->
    Total;
sum([[Number, Unit] | Parts], Units, Total) ->
    case [Factor || {Name, Factor} <- Units, string:equal(Name, Unit, true)] of
        [Factor] -> sum(Parts, Units, Total + binary_to_integer(Number) * Factor);
        [] -> error
    end.

address(Port) when is_integer(Port), Port >= 0, Port =< 65535 -> {ok, {{0, 0, 0, 0}, Port}};
address(Text) when is_binary(Text) ->
    case host_port(Text) of
        {ok, Host, Port} ->
            case inet:parse_strict_address(Host) of
                {ok, Address} -> {ok, {Address, Port}};
                {error, _} -> error
            end;
        error ->
            error
    end;
address(_) ->
    error.

url(<<"mqtt://", Rest/binary>>) -> url(tcp, Rest);
url(<<"mqtts://", Rest/binary>>) -> url(ssl, Rest);
url(_) -> error.

url(Scheme, Rest) ->
    case host_port(hd(binary:split(Rest, <<"/">>))) of
        {ok, Host, Port} -> {ok, {Scheme, Host, Port}};
        error -> error
    end.

%% Parses `host:port' and `[v6]:port'.
host_port(Text) ->
    case
        re:run(Text, <<"^(?:\\[([0-9a-fA-F:.]+)\\]|([^:\\[\\]\\s@]+)):([0-9]{1,5})$">>, [
            {capture, all_but_first, list}
        ])
    of
        {match, [V6, Name, Digits]} ->
            case list_to_integer(Digits) of
                Port when Port =< 65535 -> {ok, V6 ++ Name, Port};
                _ -> error
            end;
        nomatch ->
            error
    end.

secret_problem(bad_hash) -> <<"begins like a bcrypt hash, but is none">>;
secret_problem(hash_too_slow) -> <<"must be a bcrypt hash of cost 16 at most">>;
secret_problem({file, relative}) -> <<"must have an absolute path behind file://">>;
secret_problem({file, empty}) -> <<"is empty in its file">>;
secret_problem({file, Reason}) -> [<<"cannot be read from its file: ">>, file:format_error(Reason)].

%% A subject, or a subject with a blank and a queue group behind it.
subject(queues, Entry, Path) ->
    case binary:split(Entry, <<" ">>, [global]) of
        [Subject, Queue] ->
            subject(no_queues, Subject, Path),
            subject(no_queues, Queue, Path);
        _ ->
            subject(no_queues, Entry, Path)
    end;
subject(no_queues, Subject, Path) ->
    HasBlank = binary:match(Subject, [<<" ">>, <<"\t">>, <<"\r">>, <<"\n">>]) =/= nomatch,
    case HasBlank orelse nats_gateway_nif:filter(Subject, <<>>) =:= invalid of
        false -> ok;
        true -> invalid(Path, <<"must be a valid subject">>)
    end.

numbered(List) -> lists:zip(lists:seq(1, length(List)), List).

%% The text never holds the value, which may be a secret.
-spec invalid([binary() | pos_integer()], iodata()) -> no_return().
invalid(Path, Problem) -> throw({invalid, Path, Problem}).

path([]) -> <<"the file">>;
path([Key]) -> Key;
path([N | Path]) when is_integer(N) -> [path(Path), $[, integer_to_binary(N), $]];
path([Key | Path]) -> [path(Path), $., Key].
