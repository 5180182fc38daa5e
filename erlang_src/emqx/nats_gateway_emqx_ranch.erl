%% Listeners of EMQX's ranch: there the REST API looks for those of WebSocket, and for how many
%% connections they have.
%%
%% To ranch this module is also the transport, so that the acceptors do what those of EMQX's other
%% listeners do: keep to a rate, and let in by address. TLS is the connection's.
-module(nats_gateway_emqx_ranch).

%% Listeners
-export([open/3]).
-export([change/3]).
-export([stop/1]).
-export([suspend/1]).
-export([connections/1]).
%% The transport, as far as ranch 1 and 2 ask for it
-export([name/0, secure/0, messages/0]).
-export([listen/1, accept/2, sockname/1, peername/1, controlling_process/2, close/1]).
-export([handshake/2, handshake/3, cleanup/1]).

-ignore_xref([
    {esockd_access, compile, 1},
    {esockd_access, match, 2},
    {ranch, procs, 2},
    {ranch, resume_listener, 1},
    {ranch, set_max_connections, 2},
    {ranch, set_transport_options, 2},
    {ranch, start_listener, 5},
    {ranch, stop_listener, 1},
    {ranch, suspend_listener, 1}
]).

-export_type([options/0]).

-type name() :: atom().

%% As `nats_gateway_emqx_config:ranch_options/2' makes them.
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

%% A listener that was stopped or suspended may hold its socket for a moment longer.
-define(CLOSING_MS, 500).
-define(RETRY_MS, 20).

%% -------------------------------------------------------------------------------------------
%% Listeners

%% The connections look up what they need under the key.
-spec open(name(), options(), Key :: term()) -> {ok, pid()} | {error, term()}.
open(Name, Options, Key) ->
    ranch:start_listener(Name, ?MODULE, Options, nats_gateway_connection, Key).

%% The connections stay.
-spec change(name(), Old :: options(), New :: options()) -> ok | {error, term()}.
change(Name, Old, New = #{max_connections := Max}) ->
    ok = ranch:set_max_connections(Name, Max),
    case maps:remove(max_connections, Old) =:= maps:remove(max_connections, New) of
        true ->
            ok;
        false ->
            ok = ranch:suspend_listener(Name),
            ok = ranch:set_transport_options(Name, New),
            ranch:resume_listener(Name)
    end.

%% With its connections.
-spec stop(name()) -> ok | {error, not_found}.
stop(Name) -> ranch:stop_listener(Name).

-spec suspend(name()) -> ok.
suspend(Name) ->
    try
        ranch:suspend_listener(Name)
    catch
        error:badarg -> ok
    end.

-spec connections(name()) -> [pid()].
connections(Name) ->
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

%% ranch 2 gives all options, ranch 1 those of the socket.
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

%% ranch 2.2 asks for it, for its report of a handshake that failed
peername(Socket) -> inet:peername(Socket).

controlling_process(Socket, Pid) -> gen_tcp:controlling_process(Socket, Pid).

close(#listening{socket = Socket}) -> gen_tcp:close(Socket);
close(Socket) -> gen_tcp:close(Socket).

handshake(Socket, _Timeout) -> {ok, Socket}.

handshake(Socket, _Options, _Timeout) -> {ok, Socket}.

cleanup(_Options) -> ok.
