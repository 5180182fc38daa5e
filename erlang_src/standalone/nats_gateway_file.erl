%% Turns the standalone gateway's file into one checked map of its tables, with every default filled
%% in.
%%
%% The names are those of EMQX's gateway settings. docs/standalone.md has the units and the
%% defaults.
-module(nats_gateway_file).

-export([parse/1]).
-export([defaults/0]).

-import(nats_gateway_schema, [invalid/2]).

%% One day.
-define(MAX_LAME_DUCK_MS, 86400000).

-define(MAX_SOCKET_PATH, 107).

%% Takes the tables of a file in the form of `nats_gateway_mqtt_nif:toml/1', with binary keys.
-spec parse(map()) -> {ok, nats_gateway_config:config()} | {error, Text :: binary()}.
parse(Tables) ->
    nats_gateway_schema:valid(fun() ->
        finish(nats_gateway_schema:table(schema(), Tables, []))
    end).

%% The settings of an empty file.
-spec defaults() -> nats_gateway_config:config().
defaults() ->
    {ok, Config} = parse(#{}),
    Config.

%% -------------------------------------------------------------------------------------------
%% The settings that the file can have

-spec schema() -> nats_gateway_schema:schema().
schema() ->
    (maps:merge(nats_gateway_config:schema(), nats_gateway_login_config:file_schema()))#{
        %% a listener with TLS gives its clients more time
        authentication_timeout => {{duration, 1}, default},
        max_connections => {{limit, 1 bsl 30}, infinity},
        lame_duck_grace_period => {{duration, 0, ?MAX_LAME_DUCK_MS}, 10000},
        lame_duck_duration => {{duration, 1, ?MAX_LAME_DUCK_MS}, 120000},
        monitor => {{table, #{bind => {address, undefined}}}, #{}},
        system => {{table, nats_gateway_login_config:system_schema()}, #{}},
        presence => {{table, nats_gateway_presence:file_schema()}, #{}},
        devices => {{table, nats_gateway_device_config:file_schema()}, #{}},
        kv => {{table, nats_gateway_kv_bucket:file_schema()}, #{}},
        mappings => {{table, nats_gateway_mapping_config:file_schema()}, #{}},
        control => {{table, #{socket => {fun socket_path/2, undefined}}}, #{}},
        log_format => {{one_of, [text, json]}, text},
        log_file => {fun file_path/2, undefined},
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
                    %% The limit of Mosquitto. EMQX's limit is 128.
                    max_topic_levels => {{limit, 65535}, 200},
                    keepalive => {{integer, 1, 65535}, 60}
                }},
                #{}
            },
        listeners =>
            {
                {table, #{
                    tcp => {{named, listener_schema()}, #{}},
                    ssl => {{named, maps:merge(listener_schema(), nats_gateway_listener_config:tls_schema())}, #{}},
                    ws => {{named, websocket_listener_schema(8080)}, #{}},
                    wss =>
                        {
                            {named,
                                maps:merge(
                                    websocket_listener_schema(8443),
                                    %% With WebSocket there is only one way to begin TLS.
                                    maps:with(
                                        [ssl_options, peer_cert_as_username],
                                        nats_gateway_listener_config:tls_schema()
                                    )
                                )},
                            #{}
                        }
                }},
                #{}
            }
    }.

%% The operating system has no room for a longer name of a socket.
socket_path(<<"/", Rest/binary>> = Value, Path) when byte_size(Value) =< ?MAX_SOCKET_PATH ->
    case Rest =/= <<>> andalso binary:match(Value, <<0>>) =:= nomatch of
        true -> Value;
        false -> no_socket_path(Path)
    end;
socket_path(_, Path) ->
    no_socket_path(Path).

-spec no_socket_path(nats_gateway_schema:path()) -> no_return().
no_socket_path(Path) ->
    invalid(Path, <<"must be an absolute path of at most 107 bytes, such as \"/run/nats-gateway/control.sock\"">>).

file_path(Value, Path) ->
    case is_binary(Value) andalso Value =/= <<>> andalso binary:match(Value, <<0>>) =:= nomatch of
        true -> Value;
        false -> invalid(Path, <<"must be a path of a file">>)
    end.

%% The TLS of connections to the broker.
upstream_tls_schema() ->
    Versions = nats_gateway_listener_config:tls_versions(),
    #{
        verify => {{one_of, [verify_none, verify_peer]}, verify_peer},
        cacertfile => {string, <<"/etc/ssl/certs/ca-certificates.crt">>},
        certfile => {string, undefined},
        keyfile => {string, undefined},
        password => {string, undefined},
        %% needed if the certificate has another name than the host of the URL
        server_name_indication => {string, undefined},
        versions => {{some_of, Versions}, Versions}
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

websocket_listener_schema(Port) ->
    (listener_schema())#{
        bind => {address, {{127, 0, 0, 1}, Port}},
        websocket => {{table, nats_gateway_listener_config:websocket_schema()}, #{}}
    }.

%% -------------------------------------------------------------------------------------------
%% What becomes of the settings

finish(Settings = #{upstream := Upstream, listeners := Listeners}) ->
    #{monitor := #{bind := Monitor}, control := #{socket := Control}} = Settings,
    {Scheme, Host, Port} = maps:get(url, Upstream),
    BrokerAuthenticates = maps:get(authentication, Upstream),
    Login = nats_gateway_login_config:of_file(Settings, BrokerAuthenticates),
    #{system := System, users := Users, presence := Presence} = Settings,
    ok = nats_gateway_login_config:check_system(System, Users, BrokerAuthenticates),
    ok = check_cookies(Listeners, Login),
    #{kv := Kv, mappings := Mappings} = Settings,
    NotKept = [max_connections | nats_gateway_login_config:file_keys()],
    #{authentication_timeout := Default} = nats_gateway_config:defaults(),
    Timeout = authentication_timeout(Settings, Default),
    (maps:merge(maps:without(NotKept, Settings), nats_gateway_config:identity()))#{
        login => Login,
        auth_required := nats_gateway_login:auth_required(Login, maps:get(auth_required, Settings)),
        authentication_timeout := Timeout,
        monitor := Monitor,
        kv := nats_gateway_kv_bucket:of_file(Kv),
        mappings := nats_gateway_mapping_config:of_file(Mappings),
        control := Control,
        presence := nats_gateway_presence:of_file(Presence),
        upstream := (maps:without([url, ssl_options], Upstream))#{
            host => Host, port => Port, tls => upstream_tls(Scheme, Host, Upstream)
        },
        listeners := [
            listener(Type, Name, Listener, Timeout, Settings)
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
        %% The broker's certificate must name the address that we connect to.
        {ok, _} -> [];
        {error, _} -> [{server_name_indication, Host}]
    end.

listeners(Listeners) ->
    case lists:all(fun(Named) -> map_size(Named) =:= 0 end, maps:values(Listeners)) of
        true -> [{tcp, #{<<"default">> => nats_gateway_schema:table(listener_schema(), #{}, [])}}];
        false -> [{Type, maps:get(Type, Listeners)} || Type <- [tcp, ssl, ws, wss]]
    end.

listener(Type, Name, Listener, Timeout, Settings = #{max_connections := Max}) ->
    Id = <<(atom_to_binary(Type))/binary, $:, Name/binary>>,
    Common = (maps:with(maps:keys(listener_schema()), Listener))#{
        name => Id,
        type => Type,
        max_connections := min(Max, maps:get(max_connections, Listener)),
        authentication_timeout => Timeout
    },
    case Type of
        tcp ->
            Common;
        ssl ->
            Tls =
                #{handshake_timeout := HandshakeTimeout} =
                nats_gateway_listener_config:tls(Id, Listener, [Name, <<"ssl">>, <<"listeners">>]),
            Common#{
                tls => Tls,
                peer_cert_as_username => maps:get(peer_cert_as_username, Listener),
                %% the same as in nats-server
                authentication_timeout := authentication_timeout(Settings, HandshakeTimeout + 1000)
            };
        ws ->
            Common#{websocket => nats_gateway_listener_config:websocket(Listener)};
        wss ->
            First = #{
                tls_mode => handshake_first, allow_non_tls => false, handshake_first_wait => 1
            },
            Common#{
                tls => nats_gateway_listener_config:tls(Id, maps:merge(Listener, First), [
                    Name, <<"wss">>, <<"listeners">>
                ]),
                peer_cert_as_username => maps:get(peer_cert_as_username, Listener),
                websocket => nats_gateway_listener_config:websocket(Listener)
            }
    end.

%% If the cookie held a bearer token, any page that a user visits could log in as that user.
check_cookies(Listeners, Login) ->
    Open = [
        [<<"jwt_cookie">>, <<"websocket">>, Name, atom_to_binary(Type), <<"listeners">>]
     || {Type, Named} <- listeners(Listeners),
        Type =:= ws orelse Type =:= wss,
        {Name, Listener} <- maps:to_list(Named),
        nats_gateway_websocket:is_open_to_any_page(nats_gateway_listener_config:websocket(Listener))
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
