%% Listeners of EMQX's ranch, for WebSocket. EMQX's REST API looks for them in ranch, and asks ranch
%% how many connections they have.
%%
%% This module is also the transport that ranch calls. So the acceptors can do what those of esockd
%% do: accept at a limited rate, and refuse clients by address. The connection itself does TLS.
-module(nats_gateway_emqx_ranch).

-behaviour(nats_gateway_emqx_listeners).

%% Listeners
-export([options/2]).
-export([excludes/2]).
-export([open/3]).
-export([change/4]).
-export([stop/1]).
-export([stop_accepting/1]).
-export([connections/1]).
%% The transport: the functions that ranch 1 and 2 call
-export([name/0, secure/0, messages/0]).
-export([listen/1, accept/2, sockname/1, peername/1, controlling_process/2, close/1]).
-export([handshake/2, handshake/3, cleanup/1]).

-export_type([options/0]).

%% `nats_gateway_emqx_config:ranch_options/2' makes these.
-type options() :: #{
    max_connections := pos_integer() | infinity,
    num_acceptors := pos_integer(),
    num_conns_sups := 1,
    shutdown := pos_integer(),
    %% for `listen/1'
    socket_opts := [
        {socket, [gen_tcp:listen_option()]}
        | {limiter, map() | undefined}
        | {access_rules, [term()]}
    ]
}.

-record(listening, {
    socket :: gen_tcp:socket(),
    limiter :: undefined | map(),
    access_rules :: [term()]
}).

%% After a listener is stopped or suspended, its socket may stay open for a moment.
-define(CLOSING_MS, 500).
-define(RETRY_MS, 20).

%% -------------------------------------------------------------------------------------------
%% Listeners

-spec options(nats_gateway_emqx_config:listener(), AccessRules :: [term()]) -> options().
options(Listener, AccessRules) -> nats_gateway_emqx_config:ranch_options(Listener, AccessRules).

%% ranch identifies a listener by its name alone.
-spec excludes(nats_gateway_emqx_listeners:id(), nats_gateway_emqx_listeners:id()) ->
    boolean().
excludes({Name, _}, {Other, _}) -> Name =:= Other.

-spec open(nats_gateway_emqx_listeners:id(), options(), Key :: term()) ->
    {ok, pid()} | {error, term()}.
open({Name, _}, Options, Key) ->
    case ranch:start_listener(Name, ?MODULE, Options, nats_gateway_connection, Key) of
        {ok, Pid} -> {ok, Pid};
        {error, Reason} -> {error, cause(Reason)}
    end.

%% ranch's supervisors wrap the error of a socket in their own.
cause({{shutdown, {failed_to_start_child, ranch_acceptors_sup, {listen_error, _, Reason}}}, _}) ->
    Reason;
cause(Reason) ->
    Reason.

%% The connections stay open.
-spec change(nats_gateway_emqx_listeners:id(), options(), options(), Key :: term()) ->
    ok | {error, term()}.
change({Name, _}, Old, New = #{max_connections := Max}, _) ->
    ok = ranch:set_max_connections(Name, Max),
    case maps:remove(max_connections, Old) =:= maps:remove(max_connections, New) of
        true ->
            ok;
        false ->
            ok = ranch:suspend_listener(Name),
            ok = ranch:set_transport_options(Name, New),
            ranch:resume_listener(Name)
    end.

%% Also closes the connections.
-spec stop(nats_gateway_emqx_listeners:id()) -> ok.
stop({Name, _}) ->
    _ = ranch:stop_listener(Name),
    ok.

-spec stop_accepting(nats_gateway_emqx_listeners:id()) -> ok.
stop_accepting({Name, _}) ->
    try
        ranch:suspend_listener(Name)
    catch
        error:badarg -> ok
    end.

-spec connections(nats_gateway_emqx_listeners:id()) -> [pid()].
connections({Name, _}) ->
    try
        ranch:procs(Name, connections)
    catch
        error:badarg -> []
    end.

%% -------------------------------------------------------------------------------------------
%% The transport

name() -> tcp.

secure() -> false.

messages() -> {tcp, tcp_closed, tcp_error, tcp_passive}.

%% ranch 2 passes all options, ranch 1 only those of the socket.
listen(#{socket_opts := Options}) ->
    listen(Options);
listen(Options) ->
    {socket, Socket} = lists:keyfind(socket, 1, Options),
    {limiter, Limiter} = lists:keyfind(limiter, 1, Options),
    {access_rules, Rules} = lists:keyfind(access_rules, 1, Options),
    Until = erlang:monotonic_time(millisecond) + ?CLOSING_MS,
    case listen([{active, false}, {reuseaddr, true} | Socket], Until) of
        {ok, Port} ->
            {ok, #listening{
                socket = Port,
                limiter = limiter(Limiter),
                access_rules = [esockd_access:compile(Rule) || Rule <- Rules]
            }};
        {error, Reason} ->
            {error, Reason}
    end.

listen(Options, Until) ->
    case gen_tcp:listen(0, Options) of
        {error, eaddrinuse} = Error ->
            case erlang:monotonic_time(millisecond) < Until of
                true ->
                    timer:sleep(?RETRY_MS),
                    listen(Options, Until);
                false ->
                    Error
            end;
        Result ->
            Result
    end.

limiter(undefined) -> undefined;
limiter(Options) -> nats_gateway_emqx_limiter:create(Options#{name => ?MODULE}).

accept(#listening{socket = Listening, access_rules = Rules} = State, Timeout) ->
    case gen_tcp:accept(Listening, Timeout) of
        {ok, Socket} ->
            case is_allowed(Socket, Rules) of
                true ->
                    wait(State#listening.limiter),
                    {ok, Socket};
                false ->
                    ok = gen_tcp:close(Socket),
                    accept(State, Timeout)
            end;
        {error, Reason} ->
            {error, Reason}
    end.

is_allowed(Socket, Rules) ->
    case inet:peername(Socket) of
        {ok, {Address, _}} -> esockd_access:match(Address, Rules) =/= {matched, deny};
        {error, _} -> false
    end.

wait(undefined) ->
    ok;
wait(#{module := Module} = Limiter) ->
    case Module:consume(1, Limiter) of
        {ok, _} ->
            ok;
        {pause, Ms, _} ->
            timer:sleep(Ms),
            wait(Limiter)
    end.

sockname(#listening{socket = Socket}) -> inet:sockname(Socket);
sockname(Socket) -> inet:sockname(Socket).

%% ranch 2.2 calls this when it reports a failed handshake.
peername(Socket) -> inet:peername(Socket).

controlling_process(Socket, Pid) -> gen_tcp:controlling_process(Socket, Pid).

close(#listening{socket = Socket}) -> gen_tcp:close(Socket);
close(Socket) -> gen_tcp:close(Socket).

handshake(Socket, _Timeout) -> {ok, Socket}.

handshake(Socket, _Options, _Timeout) -> {ok, Socket}.

cleanup(_Options) -> ok.
