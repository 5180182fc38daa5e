%% The listeners of the standalone gateway, or what an EMQX that we run in needs; and what all
%% connections share.
-module(nats_gateway_sup).

-behaviour(supervisor).

-export([start_link/1]).
-export([start_listener/1]).
-export([stop_listener/1]).
-export([start_control/1]).
-export([listeners/0]).
-export([connections/0]).
-export([init/1]).

-spec start_link([supervisor:child_spec()]) -> {ok, pid()} | {error, term()}.
start_link(Children) -> supervisor:start_link({local, ?MODULE}, ?MODULE, Children).

-spec start_listener(nats_gateway_listener:listener()) ->
    ok | {error, inet:posix() | {tls, nats_gateway_tls:problem()} | term()}.
start_listener(Listener = #{name := Name}) ->
    ok = nats_gateway_listener:publish(Listener),
    Child = #{
        id => Name,
        start => {nats_gateway_listener, start_link, [Name]},
        type => supervisor,
        shutdown => infinity
    },
    case supervisor:start_child(?MODULE, Child) of
        {ok, _} -> ok;
        {error, {{shutdown, {listen, Reason}}, _}} -> {error, Reason};
        {error, {{shutdown, {tls, Problem}}, _}} -> {error, {tls, Problem}};
        {error, Reason} -> {error, Reason}
    end.

%% Its clients are closed with it.
-spec stop_listener(Name :: binary()) -> ok.
stop_listener(Name) ->
    ok = supervisor:terminate_child(?MODULE, Name),
    supervisor:delete_child(?MODULE, Name).

-spec start_control(nats_gateway_control:start()) -> ok.
start_control(Start) ->
    {ok, _} = supervisor:start_child(?MODULE, nats_gateway_control:child_spec(Start)),
    ok.

-spec listeners() -> [{binary(), pid()}].
listeners() ->
    [{Name, Pid} || {Name, Pid, supervisor, _} <- supervisor:which_children(?MODULE), is_pid(Pid)].

%% The connection processes of all listeners.
-spec connections() -> [pid()].
connections() ->
    lists:append([nats_gateway_listener:connections(Pid) || {_, Pid} <- listeners()]).

init(Children) ->
    {ok, {#{strategy => one_for_one, intensity => 5, period => 10},
        [
            #{id => Module, start => {Module, start_link, []}}
         || Module <- [nats_gateway_refusals, nats_gateway_passwords]
        ] ++
            nats_gateway_accounts:child_specs() ++ Children}}.
