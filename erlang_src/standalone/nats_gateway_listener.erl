%% A listening socket of the standalone gateway, its acceptors and its connections.
-module(nats_gateway_listener).

-behaviour(supervisor).

-export([start/1]).
-export([stop/1]).
-export([all/0]).
-export([connections/0]).
-export([publish/1]).
-export([setting/1]).
-export([certificate_problem/2]).
-export([start_link/1]).
-export([start_acceptor/4]).
-export([connections/1]).
-export([stop_accepting/1]).
-export([reconfigure/2]).
-export([init/1]).

-include_lib("kernel/include/logger.hrl").

-type listener() :: #{
    name := binary(),
    type := tcp | ssl | ws | wss,
    tls => nats_gateway_tls:settings(),
    websocket => nats_gateway_websocket:settings(),
    peer_cert_as_username => nats_gateway_certificate:name(),
    bind := {inet:ip_address(), inet:port_number()},
    %% whether the header of a proxy comes first
    proxy_protocol := boolean(),
    proxy_protocol_timeout := pos_integer(),
    acceptors := pos_integer(),
    max_connections := non_neg_integer() | infinity,
    connection := map()
}.
-export_type([listener/0]).

-define(SUPERVISOR, nats_gateway_sup).

%% The process has run out of file descriptors; others may be closed soon.
-define(EMFILE_PAUSE_MS, 100).
%% All acceptors of a listener find out again and again why nobody can be accepted. Only one of them
%% logs it, and at most once in this time.
-define(LOG_S, 10).

%% How many connections beyond the limit are told so at the same time. Each may take as long as its
%% handshake. Further connections are closed at once.
-define(MAX_REFUSED, 100).

%% Opens the listener, below the supervisor of the application.
-spec start(listener()) -> ok | {error, inet:posix() | {tls, nats_gateway_tls:problem()} | term()}.
start(Listener = #{name := Name}) ->
    ok = publish(Listener),
    Child = #{
        id => Name,
        start => {?MODULE, start_link, [Name]},
        type => supervisor,
        shutdown => infinity
    },
    case supervisor:start_child(?SUPERVISOR, Child) of
        {ok, _} -> ok;
        {error, {{shutdown, {listen, Reason}}, _}} -> {error, Reason};
        {error, {{shutdown, {tls, Problem}}, _}} -> {error, {tls, Problem}};
        {error, Reason} -> {error, Reason}
    end.

%% Also closes the connections of its clients.
-spec stop(Name :: binary()) -> ok.
stop(Name) ->
    ok = supervisor:terminate_child(?SUPERVISOR, Name),
    supervisor:delete_child(?SUPERVISOR, Name).

-spec all() -> [{Name :: binary(), pid()}].
all() ->
    [
        {Name, Pid}
     || {Name, Pid, supervisor, _} <- supervisor:which_children(?SUPERVISOR), is_pid(Pid)
    ].

%% The connection processes of all listeners.
-spec connections() -> [pid()].
connections() -> lists:append([connections(Pid) || {_, Pid} <- all()]).

%% Stores the listener for `start_link/1'. Supervisors show the arguments of their children in
%% reports, and these must not hold the passwords of keys or of the broker. Also, no connection has
%% a copy then.
-spec publish(listener()) -> ok.
publish(Listener = #{name := Name}) ->
    Options = connection_options(Listener),
    ok = persistent_term:put(key(Name, listener), Listener),
    Refused = Options#{refuse => maximum_connections_exceeded},
    _ = nats_gateway_connection:publish(key(Name, connections), Options),
    _ = nats_gateway_connection:publish(key(Name, refused), Refused),
    ok.

%% Where a listener is in the file.
-spec setting(Name :: binary()) -> iodata().
setting(Name) ->
    [Type, Id] = binary:split(Name, <<":">>),
    ["listeners.", Type, $., Id].

%% What is wrong with a file of a listener's TLS, with the setting that names the file.
-spec certificate_problem(Name :: binary(), nats_gateway_tls:problem()) -> iodata().
certificate_problem(Name, Problem) ->
    [setting(Name), ".ssl_options.", nats_gateway_tls:format_problem(Problem)].

key(Name, What) -> {?MODULE, Name, What}.

%% Binds before it answers, so a port that is in use is noticed at once.
-spec start_link(Name :: binary()) ->
    {ok, pid()}
    | {error, {shutdown, {listen, inet:posix()} | {tls, nats_gateway_tls:problem()}}}.
start_link(Name) -> supervisor:start_link(?MODULE, {listener, Name}).

%% The connection processes of a listener.
-spec connections(pid()) -> [pid()].
connections(Sup) ->
    [Pid || {_, Pid, _, _} <- supervisor:which_children(child(connections, Sup)), is_pid(Pid)].

%% From now on the operating system refuses new clients. The others stay connected.
-spec stop_accepting(pid()) -> ok.
stop_accepting(Sup) ->
    Acceptors = [Id || {{acceptor, _} = Id, _, _, _} <- supervisor:which_children(Sup)],
    {ok, #{start := {_, _, [ListenSocket | _]}}} = supervisor:get_childspec(Sup, hd(Acceptors)),
    lists:foreach(fun(Id) -> ok = supervisor:terminate_child(Sup, Id) end, Acceptors),
    nats_gateway_transport:close(ListenSocket).

%% Sets other settings for the same socket. Connected clients get those that the protocol can
%% change.
-spec reconfigure(pid(), listener()) -> ok | {error, {tls, nats_gateway_tls:problem()}}.
reconfigure(Sup, Listener) ->
    case publish_certificate(Listener) of
        ok ->
            ok = publish(Listener),
            lists:foreach(fun nats_gateway_connection:configure/1, connections(Sup));
        {error, Problem} ->
            {error, {tls, Problem}}
    end.

child(Id, Sup) ->
    {_, Pid, _, _} = lists:keyfind(Id, 1, supervisor:which_children(Sup)),
    Pid.

%% The socket belongs to this supervisor. It is closed when the listener ends, and opened again when
%% the listener is restarted.
init({listener, Name}) ->
    Listener = #{bind := Bind, acceptors := Acceptors} = persistent_term:get(key(Name, listener)),
    case publish_certificate(Listener) of
        ok -> ok;
        {error, Problem} -> exit({shutdown, {tls, Problem}})
    end,
    Logged = atomics:new(1, [{signed, true}]),
    ok = atomics:put(Logged, 1, erlang:monotonic_time(second) - ?LOG_S),
    case nats_gateway_transport:listen(Bind, maps:with([backlog], Listener)) of
        {ok, ListenSocket} ->
            %% Connections that are being refused take nobody's place.
            [Connections, Refused] = [
                #{
                    id => Id,
                    start => {supervisor, start_link, [?MODULE, connections]},
                    type => supervisor,
                    shutdown => infinity
                }
             || Id <- [connections, refused]
            ],
            {ok, {#{strategy => rest_for_one, intensity => 10, period => 10}, [
                Connections,
                Refused
                | [
                    #{
                        id => {acceptor, N},
                        start => {?MODULE, start_acceptor, [ListenSocket, self(), Name, Logged]},
                        shutdown => brutal_kill
                    }
                 || N <- lists:seq(1, Acceptors)
                ]
            ]}};
        {error, Reason} ->
            exit({shutdown, {listen, Reason}})
    end;
init(connections) ->
    Connection = #{
        id => connection,
        start => {nats_gateway_connection, start_link, []},
        restart => temporary,
        shutdown => 5000
    },
    {ok, {#{strategy => simple_one_for_one}, [Connection]}}.

connection_options(Listener = #{type := Type, connection := Connection}) ->
    Options = maps:merge(
        maps:merge(Connection, maps:with([peer_cert_as_username, websocket], Listener)),
        proxy_options(Listener)
    ),
    case Listener of
        #{tls := Tls} -> Options#{transport => Type, tls => nats_gateway_tls:plan(Tls)};
        #{} -> Options#{transport => Type}
    end.

proxy_options(#{proxy_protocol := true, proxy_protocol_timeout := Timeout}) ->
    #{proxy_protocol => Timeout};
proxy_options(_) ->
    #{}.

publish_certificate(#{tls := Tls}) -> nats_gateway_tls:publish(Tls);
publish_certificate(#{}) -> ok.

%% `Logged' holds the time when an acceptor last logged a failure, in seconds of monotonic time.
-spec start_acceptor(
    nats_gateway_transport:listen_socket(), pid(), Name :: binary(), atomics:atomics_ref()
) -> {ok, pid()}.
start_acceptor(ListenSocket, Sup, Name, Logged) ->
    {ok,
        proc_lib:spawn_link(fun() ->
            Sups = {child(connections, Sup), child(refused, Sup)},
            accept(ListenSocket, Sups, #{name => Name, logged => Logged})
        end)}.

accept(ListenSocket, Sups, Listener = #{name := Name}) ->
    case nats_gateway_transport:accept(ListenSocket) of
        {ok, Socket} ->
            %% A reload may have changed the limit.
            #{max_connections := Max} = persistent_term:get(key(Name, listener)),
            case admit(Sups, Max) of
                {Kind, Under} ->
                    {ok, Pid} = supervisor:start_child(Under, [Socket, key(Name, Kind)]),
                    ok = nats_gateway_connection:hand_over(Socket, Pid);
                none ->
                    log_failure(maximum_connections_exceeded, Listener),
                    ok = nats_gateway_transport:abort(Socket)
            end,
            accept(ListenSocket, Sups, Listener);
        {error, Reason} when
            Reason =:= emfile; Reason =:= enfile; Reason =:= enobufs; Reason =:= system_limit
        ->
            log_failure(Reason, Listener),
            receive
            after ?EMFILE_PAUSE_MS -> ok
            end,
            accept(ListenSocket, Sups, Listener);
        {error, closed} ->
            exit(shutdown);
        {error, _} ->
            %% The client gave up between SYN and accept.
            accept(ListenSocket, Sups, Listener)
    end.

log_failure(Reason, #{name := Name, logged := Logged}) ->
    Now = erlang:monotonic_time(second),
    Last = atomics:get(Logged, 1),
    Now - Last >= ?LOG_S andalso
        atomics:compare_exchange(Logged, 1, Last, Now) =:= ok andalso
        ?LOG_WARNING(#{msg => "accept_failed", listener => Name, reason => Reason}).

admit({Connections, _}, infinity) ->
    {connections, Connections};
admit({Connections, Refused}, Max) ->
    %% Counting looks at each connection, so it is done only if there is a limit.
    case active(Connections) >= Max of
        false ->
            {connections, Connections};
        true ->
            case active(Refused) >= ?MAX_REFUSED of
                false -> {refused, Refused};
                true -> none
            end
    end.

active(Sup) -> proplists:get_value(active, supervisor:count_children(Sup)).
