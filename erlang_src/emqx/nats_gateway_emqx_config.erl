%% Turns EMQX's settings of the gateway `nats' into ours, and into those of esockd and ranch.
-module(nats_gateway_emqx_config).

-export([listeners/1]).
-export([problem/3]).
-export([check_page/2]).
-export([login/2]).
-export([has_authenticators/2]).
-export([bar_name/0]).
-export([is_bar/1]).
-export([listener_id/1]).
-export([options/6]).
-export([esockd_options/1]).
-export([ranch_options/2]).
-export([websocket/2]).
-export([tls/4]).
-export([changes/2]).

-export_type([listener/0, id/0, host_settings/0]).

%% The part of a connection's settings that only the host and its modules in this room read.
-type host_settings() :: #{
    context := nats_gateway_emqx_metrics:context(),
    enable_authn := boolean(),
    auto_subscribe := boolean()
}.

-type id() :: {Type :: atom(), Name :: atom() | binary()}.

-type listener() :: #{
    id := id(),
    %% EMQX looks the listener up by this: port or {address, port}
    bind := inet:port_number() | {inet:ip_address(), inet:port_number()},
    %% the settings of this listener, as EMQX has checked them
    conf := map()
}.

%% The most that one chunk can hold. The default would be one segment.
-define(READ_BUFFER, 65536).
%% EMQX's defaults. A listener that has one of these values gets our own default instead.
-define(EMQX_BUFFER, 4096).
-define(EMQX_SEND_TIMEOUT_MS, 15000).
%% The largest value that the socket driver takes.
-define(WATERMARK, 16#7FFFFFFF).
%% How long esockd waits for a handshake if nothing is set.
-define(HANDSHAKE_MS, 15000).
%% Options of a listener's TLS that are no options of OTP's handshake, or that the gateway handles
%% itself.
-define(OURS, [
    certfile, keyfile, cacertfile, password, handshake_timeout, gc_after_handshake, log_level
]).
%% Settings of the plugin's page for the part of a connection before it has a channel.
-define(CONNECTION_PAGE, [
    login, peer_cert_as_username, websocket_same_origin, websocket_jwt_cookie
]).
-define(TLS_PAGE, [tls_mode, allow_non_tls, handshake_first_wait]).
%% EMQX shows this in place of a secret. In a list, EMQX takes it for the secret when it comes back.
-define(REDACTED, <<"******">>).
%% How long EMQX gives the connections of a closed listener to leave the broker.
-define(SHUTDOWN_MS, 5000).
%% cowboy's timeout for a request
-define(REQUEST_MS, 5000).

-spec listeners(map()) -> [listener()].
listeners(Gateway) ->
    lists:sort([
        #{id => {Type, Name}, bind => Bind, conf => Conf}
     || {Type, Named} <- maps:to_list(maps:get(listeners, Gateway, #{})),
        {Name, Conf = #{bind := Bind}} <- maps:to_list(Named),
        maps:get(enable, Conf, true)
    ]).

%% Finds settings that would be dangerous to ignore.
-spec problem(Gateway :: map(), Plugin :: map(), nats_gateway_login:login()) ->
    none | {Key :: atom(), Value :: term(), Text :: binary()}.
problem(Gateway, Plugin, Login) ->
    Wrong = [
        {listener_id(Id), Text}
     || #{id := Id, conf := #{websocket := Ws = #{check_origin_enable := true}}} <-
            listeners(Gateway),
        Text <- maps:get(check_origins, Ws, []),
        nats_gateway_websocket:origin(Text) =:= error
    ],
    case Wrong of
        [] ->
            cookie_problem(Gateway, Plugin, Login);
        [{Listener, Text} | _] ->
            {check_origins, #{listener => Listener, origin => Text},
                <<"must be origins such as https://example.com">>}
    end.

%% Checks the plugin's page before it is saved.
-spec check_page(Gateway :: map(), Plugin :: map()) -> ok | {error, Text :: binary()}.
check_page(Gateway, Plugin) ->
    case login(Gateway, Plugin) of
        {ok, Login} ->
            case cookie_problem(Gateway, Plugin, Login) of
                none -> ok;
                {Key, #{listener := Id}, Text} ->
                    {error, <<(atom_to_binary(Key))/binary, " (", (atom_to_binary(Id))/binary, "): ", Text/binary>>}
            end;
        %% the settings of the gateway are wrong, not those of the page
        {error, _} ->
            ok
    end.

%% With a bearer token in the cookie, any page that a user visits could act for that user.
cookie_problem(Gateway, Plugin, Login) ->
    Open = [
        Id
     || #{id := Id = {Type, _}, conf := Conf} <- listeners(Gateway),
        Type =:= ws orelse Type =:= wss,
        maps:get(enable_authn, Conf, true),
        nats_gateway_websocket:is_open_to_any_page(websocket(Conf, Plugin))
    ],
    case nats_gateway_login:takes_bearer_tokens(Login) of
        true when Open =/= [] ->
            {websocket_jwt_cookie, #{listener => listener_id(hd(Open))}, <<
                "needs websocket_same_origin, or check_origin_enable and check_origins of the "
                "listener, as long as an account does not have disallow_bearer: any web page could "
                "log in as its visitor"
            >>};
        _ ->
            none
    end.

%% The logins that come before EMQX's authentication. The gateway's settings have them from EMQX 6.2
%% on. If these have none, the plugin's page decides.
-spec login(Gateway :: map(), Plugin :: map()) ->
    {ok, nats_gateway_login:login()} | {error, Text :: binary()}.
login(#{internal_authn := Methods = [_ | _]}, _) ->
    Numbered = lists:zip(lists:seq(1, length(Methods)), Methods),
    case [N || {N, #{type := token, token := ?REDACTED}} <- Numbered] of
        [] ->
            nats_gateway_login_config:of_gateway(#{<<"internal_authn">> => binary_keys(Methods)});
        [N | _] ->
            {error,
                iolist_to_binary([
                    ["internal_authn[", integer_to_list(N), "].token: "],
                    "must be the token itself, not what EMQX shows in its place"
                ])}
    end;
login(_, #{login := Login}) ->
    {ok, Login}.

binary_keys(Map) when is_map(Map) ->
    maps:from_list([{text(Key), binary_keys(Value)} || {Key, Value} <- maps:to_list(Map)]);
binary_keys(List) when is_list(List) ->
    [binary_keys(Value) || Value <- List];
binary_keys(Atom) when is_atom(Atom), not is_boolean(Atom) ->
    atom_to_binary(Atom);
binary_keys(Value) ->
    Value.

%% Whether EMQX's authentication asks such a client for a login. The chain of the listener has
%% precedence over that of the gateway. A chain without an enabled authenticator lets everybody in.
-spec has_authenticators(Gateway :: map(), Conf :: map()) -> boolean().
has_authenticators(Gateway, Conf) ->
    case authenticators(Conf) of
        [] -> any_enabled(authenticators(Gateway));
        Authenticators -> any_enabled(Authenticators)
    end.

%% The bar lets nobody in. It is there for the built-in gateway, not for clients of this one.
authenticators(#{authentication := Authenticators}) when is_list(Authenticators) ->
    lists:filter(fun(A) -> not is_bar(A) end, Authenticators);
authenticators(#{authentication := Authenticator}) when is_map(Authenticator) ->
    authenticators(#{authentication => [Authenticator]});
authenticators(_) ->
    [].

%% The claim by which `nats_gateway_emqx_built_in' marks its bar. Operators see it in the dashboard.
-spec bar_name() -> binary().
bar_name() -> <<"bar_of_the_plugin_nats_gateway">>.

%% The authenticator is as EMQX has checked it.
-spec is_bar(map()) -> boolean().
is_bar(Authenticator) -> maps:get(acl_claim_name, Authenticator, undefined) =:= bar_name().

any_enabled(Authenticators) -> lists:any(fun(A) -> maps:get(enable, A, true) end, Authenticators).

%% The options with which a connection of the listener starts. `Defaults' are those of the
%% standalone gateway. Its `auth_required' says whether EMQX lets nobody in while there is no
%% authenticator. `Context' is for the host.
-spec options(Gateway, listener(), Plugin, Login, Defaults, Context) -> map() when
    Gateway :: map(),
    Plugin :: map(),
    Login :: nats_gateway_login:login(),
    Defaults :: map(),
    Context :: nats_gateway_emqx_metrics:context().
options(Gateway, Listener, Plugin, GatewayLogin, Defaults, Context) ->
    #{id := Id = {Type, _}, conf := Conf} = Listener,
    EnableAuthn = maps:get(enable_authn, Conf, true),
    HasAuthenticators = has_authenticators(Gateway, Conf),
    %% A client that brings nothing for the gateway's own methods is left to the authenticators, if
    %% there are any.
    Login =
        case EnableAuthn of
            true -> nats_gateway_login:fall_through(HasAuthenticators, GatewayLogin);
            false -> nats_gateway_login:none()
        end,
    Own = maps:without([upstream, listeners, log_level], Defaults#{clientinfo_override => #{}}),
    {AutoSubscribe, OfPage} = maps:take(auto_subscribe, Plugin),
    Page = maps:without(?CONNECTION_PAGE ++ ?TLS_PAGE, OfPage),
    Tcp = maps:get(tcp_options, Conf, #{}),
    Protocol = maps:get(protocol, Gateway, #{}),
    Config = maps:merge(
        maps:merge(Own, defined(Page)),
        defined(#{
            server_id => server_id(maps:get(server_id, Gateway, undefined)),
            server_name => maps:get(server_name, Gateway, undefined),
            mountpoint => mountpoint(Gateway, Conf),
            default_heartbeat_interval =>
                interval(maps:get(default_heartbeat_interval, Gateway, undefined)),
            heartbeat_wait_timeout => maps:get(heartbeat_wait_timeout, Gateway, undefined),
            idle_timeout => interval(maps:get(idle_timeout, Gateway, undefined)),
            max_payload_size => maps:get(max_payload_size, Protocol, undefined),
            enable_stats => maps:get(enable_stats, Gateway, undefined),
            send_timeout => send_timeout(maps:get(send_timeout, Tcp, undefined)),
            clientinfo_override => override(maps:get(clientinfo_override, Gateway, undefined)),
            login => Login,
            auth_required =>
                EnableAuthn andalso
                    nats_gateway_login:auth_required(
                        Login, HasAuthenticators orelse maps:get(auth_required, Defaults)
                    )
        })
    ),
    Options = (connection_options(Tcp))#{
        host => nats_gateway_host_emqx,
        listener => listener_id(Id),
        transport => Type,
        peer_cert_as_username => maps:get(peer_cert_as_username, Plugin, disabled),
        config => Config#{host => host_settings(Context, EnableAuthn, AutoSubscribe)}
    },
    Proxied =
        case Conf of
            #{proxy_protocol := true} ->
                Options#{proxy_protocol => maps:get(proxy_protocol_timeout, Conf, 3000)};
            #{} ->
                Options
        end,
    case Type =:= ws orelse Type =:= wss of
        true -> Proxied#{websocket => websocket(Conf, Plugin)};
        false -> Proxied
    end.

-spec host_settings(nats_gateway_emqx_metrics:context(), boolean(), boolean()) -> host_settings().
host_settings(Context, EnableAuthn, AutoSubscribe) ->
    #{context => Context, enable_authn => EnableAuthn, auto_subscribe => AutoSubscribe}.

%% Combines what EMQX's page and our page have of WebSocket.
-spec websocket(Conf :: map(), Plugin :: map()) -> nats_gateway_websocket:settings().
websocket(Conf, Plugin) ->
    Ws = maps:get(websocket, Conf, #{}),
    Text = fun(Key) ->
        case unicode:characters_to_binary(maps:get(Key, Ws, <<>>)) of
            <<>> -> undefined;
            Value -> string:lowercase(Value)
        end
    end,
    defined(#{
        path => path(maps:get(path, Ws, <<>>)),
        same_origin => maps:get(websocket_same_origin, Plugin, false),
        allowed_origins => origins(Ws),
        allow_origin_absence => maps:get(allow_origin_absence, Ws, true),
        subprotocols => [
            string:lowercase(iolist_to_binary(Name))
         || Name <- maps:get(supported_subprotocols, Ws, [])
        ],
        needs_subprotocol => maps:get(fail_if_no_subprotocol, Ws, false),
        compress => maps:get(compress, Ws, false),
        deflate_options => deflate_options(maps:get(deflate_opts, Ws, #{})),
        max_frame_size =>
            case maps:get(max_frame_size, Ws, infinity) of
                Size when is_integer(Size), Size > 0 -> Size;
                _ -> infinity
            end,
        handshake_timeout => ?REQUEST_MS,
        jwt_cookie => maps:get(websocket_jwt_cookie, Plugin, undefined),
        proxy_address_header => Text(proxy_address_header),
        proxy_port_header => Text(proxy_port_header)
    }).

path(Path) ->
    case unicode:characters_to_binary(Path) of
        <<>> -> undefined;
        <<"/", _/binary>> = Absolute -> Absolute;
        Relative -> <<"/", Relative/binary>>
    end.

%% Invalid origins are left out here, because `problem/1' reports them.
origins(#{check_origin_enable := true, check_origins := Origins}) ->
    [Origin || Text <- Origins, {ok, Origin} <- [nats_gateway_websocket:origin(Text)]];
origins(_) ->
    [].

deflate_options(Options) -> defined(maps:with([level, mem_level, strategy], Options)).

defined(Map) -> maps:filter(fun(_, Value) -> Value =/= undefined end, Map).

%% The value of the listener. If it has none, the page's value holds.
send_timeout(?EMQX_SEND_TIMEOUT_MS) -> undefined;
send_timeout(Ms) -> Ms.

%% EMQX's default is the same on every node, and clients would take all nodes for one server.
server_id(<<"emqx_nats_gateway">>) -> undefined;
server_id(Id) -> Id.

mountpoint(Gateway, Conf) ->
    case maps:get(mountpoint, Conf, undefined) of
        undefined -> maps:get(mountpoint, Gateway, undefined);
        Mountpoint -> Mountpoint
    end.

interval(0) -> infinity;
interval(Ms) -> Ms.

override(undefined) -> undefined;
override(Override) -> defined(maps:with([clientid, username, password], Override)).

-spec listener_id(id()) -> atom().
listener_id({Type, Name}) ->
    binary_to_atom(iolist_to_binary(["nats:", text(Type), $:, text(Name)])).

text(Atom) when is_atom(Atom) -> atom_to_binary(Atom);
text(Text) -> Text.

%% The caller adds `access_rules', because EMQX compiles them. The connection itself reads the PROXY
%% header.
-spec esockd_options(listener()) -> [{atom(), term()}].
esockd_options(#{conf := Conf}) ->
    [
        {acceptors, maps:get(acceptors, Conf, 16)},
        {max_connections, maps:get(max_connections, Conf, 1024)},
        {limiter, nats_gateway_emqx_limiter:options(maps:get(max_conn_rate, Conf, infinity))},
        {shutdown, ?SHUTDOWN_MS},
        {tcp_options, tcp_options(maps:get(tcp_options, Conf, #{}))}
    ].

%% The same for ranch, in the form that `nats_gateway_emqx_ranch' takes.
-spec ranch_options(listener(), AccessRules :: [term()]) ->
    nats_gateway_emqx_ranch:options().
ranch_options(Listener = #{bind := Bind}, AccessRules) ->
    Options = esockd_options(Listener),
    Get = fun(Name) -> proplists:get_value(Name, Options) end,
    #{
        max_connections => Get(max_connections),
        num_acceptors => Get(acceptors),
        %% ranch 2 would count connections per supervisor
        num_conns_sups => 1,
        shutdown => Get(shutdown),
        socket_opts => [
            {socket, address(Bind) ++ Get(tcp_options)},
            {limiter, Get(limiter)},
            {access_rules, AccessRules}
        ]
    }.

address({Address, Port}) when tuple_size(Address) =:= 8 -> [inet6, {ip, Address}, {port, Port}];
address({Address, Port}) -> [{ip, Address}, {port, Port}];
address(Port) -> [{port, Port}].

%% `Options' is what EMQX makes for OTP of the listener's `ssl_options'. EMQX leaves out a file that
%% does not exist. The setting itself is read too, so that the error can name the file.
-spec tls(listener(), Key :: term(), [proplists:property()], Plugin :: map()) ->
    nats_gateway_tls:settings().
tls(#{id := Id, conf := #{ssl_options := Ssl}}, Key, Options, Plugin) ->
    File = fun(Name) -> proplists:get_value(Name, Options, maps:get(Name, Ssl, undefined)) end,
    CertFile =
        case File(certfile) of
            undefined -> <<>>;
            Named -> Named
        end,
    maps:merge(
        defined(#{
            listener => listener_id(Id),
            key => Key,
            handshake_timeout => proplists:get_value(handshake_timeout, Options, ?HANDSHAKE_MS),
            verify => proplists:get_value(verify, Options, verify_none),
            certfile => CertFile,
            keyfile =>
                case File(keyfile) of
                    undefined -> CertFile;
                    KeyFile -> KeyFile
                end,
            cacertfile => File(cacertfile),
            password => password(proplists:get_value(password, Options)),
            options => [
                {log_level, log_level(proplists:get_value(log_level, Options))}
                | lists:filter(
                    fun({Option, _}) -> not lists:member(Option, ?OURS) end,
                    proplists:unfold(Options)
                )
            ]
        }),
        tls_page(Id, Plugin)
    ).

%% With WebSocket, TLS comes first, then HTTP, so no INFO can come before TLS.
tls_page({wss, _}, Plugin) ->
    (tls_page(other, Plugin))#{mode := handshake_first, allow_non_tls := false};
tls_page(_, Plugin) ->
    #{tls_mode := Mode} = Page = maps:with(?TLS_PAGE, Plugin),
    (maps:remove(tls_mode, Page))#{mode => Mode}.

password(undefined) -> undefined;
password(Password) when is_function(Password, 0) -> Password;
password(Password) -> fun() -> Password end.

%% The connection itself logs why a handshake failed. OTP logs it, too, if the operator asks for
%% more.
log_level(Level) when Level =:= all; Level =:= debug; Level =:= info -> Level;
log_level(_) -> none.

tcp_options(Tcp) ->
    Configured = maps:to_list(
        defined(maps:with([backlog, recbuf, sndbuf, nodelay, reuseaddr], Tcp))
    ),
    NoLinger = maps:get(nolinger, Tcp, false),
    [
        binary,
        {packet, raw},
        {buffer, buffer(maps:get(buffer, Tcp, ?EMQX_BUFFER))},
        %% A send never waits: the connection watches what waits for the client.
        {high_watermark, ?WATERMARK},
        %% After the client's FIN its last requests are still answered.
        {exit_on_close, false},
        %% Set even when it is off, because it may have been on before.
        {linger, {NoLinger, 0}}
        | Configured
    ].

buffer(?EMQX_BUFFER) -> ?READ_BUFFER;
buffer(Bytes) -> Bytes.

%% The TCP options that the connection sets.
connection_options(Tcp) ->
    defined(#{
        active_n => active_n(maps:get(active_n, Tcp, undefined)),
        keepalive => keepalive(maps:get(keepalive, Tcp, "none"))
    }).

active_n(N) when is_integer(N), N >= 1 -> min(N, nats_gateway_transport:max_active_n());
active_n(_) -> undefined.

%% EMQX has checked that the text is three numbers.
keepalive(Text) ->
    case string:lexemes(unicode:characters_to_list(Text), ", ") of
        [_, _, _] = Numbers -> list_to_tuple(lists:map(fun list_to_integer/1, Numbers));
        _ -> undefined
    end.

%% What has to be done to get from the old listeners to the new ones. A listener on another address
%% is another listener.
-spec changes([listener()], [listener()]) ->
    #{close := [listener()], open := [listener()], keep := [listener()]}.
changes(Old, New) ->
    Name = fun(#{id := Id, bind := Bind}) -> {Id, Bind} end,
    OldNames = lists:map(Name, Old),
    NewNames = lists:map(Name, New),
    {Keep, Open} = lists:partition(fun(L) -> lists:member(Name(L), OldNames) end, New),
    Close = [L || L <- Old, not lists:member(Name(L), NewNames)],
    #{close => Close, open => Open, keep => Keep}.
