%% From EMQX's settings of the gateway `nats' to ours, and to esockd's.
-module(nats_gateway_emqx_config).

-export([listeners/1]).
-export([login/2]).
-export([has_authenticators/2]).
-export([listener_id/1]).
-export([options/5]).
-export([esockd_options/2]).
-export([changes/2]).

-export_type([listener/0, id/0]).

-type id() :: {Type :: atom(), Name :: atom() | binary()}.

-type listener() :: #{
    id := id(),
    %% as EMQX looks it up: port or {address, port}
    bind := inet:port_number() | {inet:ip_address(), inet:port_number()},
    %% of this listener, as EMQX has checked it
    conf := map()
}.

%% One chunk can hold at most this much; the default would be one segment (design section 5).
-define(READ_BUFFER, 65536).
%% The largest that fits the socket driver's integer.
-define(MAX_WATERMARK, 16#7FFFFFFF).
%% How long EMQX lets the connections of a closed listener say goodbye to the broker.
-define(SHUTDOWN_MS, 5000).

-spec listeners(map()) -> [listener()].
listeners(Gateway) ->
    lists:sort([
        #{id => {Type, Name}, bind => Bind, conf => Conf}
     || {Type, Named} <- maps:to_list(maps:get(listeners, Gateway, #{})),
        {Name, Conf = #{bind := Bind}} <- maps:to_list(Named),
        maps:get(enable, Conf, true)
    ]).

%% The logins that come before EMQX's authentication: those of the gateway's settings, which EMQX
%% has from 6.2 on, else those of the plugin's page.
-spec login(Gateway :: map(), Plugin :: map()) ->
    {ok, nats_gateway_login:login()} | {error, Text :: binary()}.
login(#{internal_authn := Methods = [_ | _]}, _) ->
    Schema = nats_gateway_config:login_schema(),
    case nats_gateway_config:check(Schema, #{<<"internal_authn">> => binary_keys(Methods)}) of
        {ok, Settings} -> nats_gateway_config:login(Settings);
        {error, Text} -> {error, Text}
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

%% What EMQX's authentication does for such a client: the chain of the listener goes before that
%% of the gateway, and one without an enabled authenticator lets everybody in.
-spec has_authenticators(Gateway :: map(), Conf :: map()) -> boolean().
has_authenticators(Gateway, Conf) ->
    case authenticators(Conf) of
        [] -> any_enabled(authenticators(Gateway));
        Authenticators -> any_enabled(Authenticators)
    end.

authenticators(#{authentication := Authenticators}) when is_list(Authenticators) -> Authenticators;
authenticators(#{authentication := Authenticator}) when is_map(Authenticator) -> [Authenticator];
authenticators(_) -> [].

any_enabled(Authenticators) -> lists:any(fun(A) -> maps:get(enable, A, true) end, Authenticators).

%% What a connection of the listener is started with. Defaults are those of the standalone
%% gateway; `emqx' is what only the host looks at.
-spec options(Gateway :: map(), listener(), Plugin :: map(), Login, Defaults :: map()) -> map() when
    Login :: nats_gateway_login:login().
options(Gateway, #{id := Id = {Type, _}, conf := Conf}, Plugin, GatewayLogin, Defaults) ->
    EnableAuthn = maps:get(enable_authn, Conf, true),
    HasAuthenticators = has_authenticators(Gateway, Conf),
    %% A client that brings nothing for the gateway's own methods is left to the authenticators,
    %% where there are any.
    Login =
        case EnableAuthn of
            true -> nats_gateway_login:fall_through(HasAuthenticators, GatewayLogin);
            false -> nats_gateway_login:none()
        end,
    Own = maps:without([upstream, listeners, log_level], Defaults#{clientinfo_override => #{}}),
    Page = maps:remove(login, defined(Plugin)),
    Protocol = maps:get(protocol, Gateway, #{}),
    Config = maps:merge(
        maps:merge(Own, Page),
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
            clientinfo_override => override(maps:get(clientinfo_override, Gateway, undefined)),
            login => Login,
            auth_required =>
                EnableAuthn andalso nats_gateway_login:auth_required(Login, HasAuthenticators)
        })
    ),
    #{
        host => nats_gateway_host_emqx,
        listener => listener_id(Id),
        transport => Type,
        config => Config#{enable_authn => EnableAuthn}
    }.

defined(Map) -> maps:filter(fun(_, Value) -> Value =/= undefined end, Map).

%% EMQX's default is the same on every node; clients take it for the name of one server.
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

%% `access_rules' is left to the caller: EMQX compiles it.
-spec esockd_options(listener(), Plugin :: map()) -> [{atom(), term()}].
esockd_options(#{conf := Conf}, Plugin) ->
    [
        {acceptors, maps:get(acceptors, Conf, 16)},
        {max_connections, maps:get(max_connections, Conf, 1024)},
        {limiter, nats_gateway_emqx_limiter:options(maps:get(max_conn_rate, Conf, infinity))},
        {shutdown, ?SHUTDOWN_MS},
        {proxy_protocol, maps:get(proxy_protocol, Conf, false)},
        {proxy_protocol_timeout, maps:get(proxy_protocol_timeout, Conf, 3000)},
        {tcp_options, tcp_options(maps:get(tcp_options, Conf, #{}), Plugin)}
    ].

tcp_options(Tcp, Plugin) ->
    Configured = maps:to_list(
        defined(maps:with([backlog, recbuf, sndbuf, nodelay, reuseaddr], Tcp))
    ),
    [
        binary,
        {packet, raw},
        {buffer, max(?READ_BUFFER, maps:get(buffer, Tcp, 0))},
        {send_timeout, maps:get(send_timeout, Plugin, maps:get(send_timeout, Tcp, 15000))},
        {send_timeout_close, true},
        %% This much may wait for the client; more makes a send wait, until its timeout.
        {high_watermark, min(?MAX_WATERMARK, maps:get(max_pending, Plugin, 1 bsl 20))},
        {keepalive, keepalive(maps:get(keepalive, Tcp, "none"))},
        %% After the client's FIN its last requests are still answered.
        {exit_on_close, false}
        | Configured
    ].

keepalive(Text) when is_list(Text) -> Text =/= "none";
keepalive(Text) when is_binary(Text) -> Text =/= <<"none">>;
keepalive(_) -> false.

%% What has to be done to get from the old listeners to the new ones. One that is bound to another
%% address is another one.
-spec changes([listener()], [listener()]) ->
    #{close := [listener()], open := [listener()], keep := [listener()]}.
changes(Old, New) ->
    Name = fun(#{id := Id, bind := Bind}) -> {Id, Bind} end,
    OldNames = lists:map(Name, Old),
    NewNames = lists:map(Name, New),
    {Keep, Open} = lists:partition(fun(L) -> lists:member(Name(L), OldNames) end, New),
    Close = [L || L <- Old, not lists:member(Name(L), NewNames)],
    #{close => Close, open => Open, keep => Keep}.
