%% The monitoring port of the standalone gateway: what it tells of the listeners, the broker and the
%% lame duck mode, and how it is opened, moved and closed.
-module(nats_gateway_standalone_monitor).

-export([open/1]).
-export([change/2]).
-export([update/1]).

-type facts() :: #{
    config := nats_gateway_config:config(),
    listeners := [nats_gateway_listener:listener()],
    is_lame_duck := boolean()
}.

%% The broker is tried by a connection without a word, which it may log: no more often than this.
-define(TRY_MS, 10000).
-define(CONNECT_MS, 1000).

-spec open(nats_gateway_monitor:bind()) -> ok | {error, inet:posix() | term()}.
open(Bind) -> nats_gateway_monitor:open(Bind, fun gateway/0).

%% At a reload.
-spec change(Old, New) -> ok | {error, inet:posix() | term()} when
    Old :: nats_gateway_monitor:bind(), New :: nats_gateway_monitor:bind().
change(Old, New) -> nats_gateway_monitor:change(Old, New, fun gateway/0).

%% What is told from now on; before `open/1' and `change/2'.
-spec update(facts()) -> ok.
update(Facts) ->
    %% Time and result of the last connection to the broker, which may be another one now.
    persistent_term:put(?MODULE, Facts#{tried => atomics:new(2, [{signed, true}])}).

gateway() ->
    #{config := Config, listeners := Listeners} = Facts = persistent_term:get(?MODULE),
    #{
        config => Config,
        listeners => [maps:with([name, type, bind, max_connections], Listener) || Listener <- Listeners],
        started => started(),
        health => fun() -> health(Facts) end
    }.

started() ->
    erlang:convert_time_unit(erlang:system_info(start_time) + erlang:time_offset(), native, millisecond).

health(#{is_lame_duck := true}) ->
    {error, <<"lame duck mode: clients are told to go to another server">>};
health(#{config := #{upstream := #{host := Host, port := Port}}, tried := Tried}) ->
    Now = erlang:monotonic_time(millisecond),
    Reachable = 1,
    case {atomics:get(Tried, 1), atomics:get(Tried, 2)} of
        {At, Reachable} when Now - At < ?TRY_MS ->
            ok;
        _ ->
            case nats_gateway_transport:connect({Host, Port}, none, ?CONNECT_MS) of
                {ok, Socket} ->
                    ok = nats_gateway_transport:close(Socket),
                    atomics:put(Tried, 1, Now),
                    atomics:put(Tried, 2, Reachable);
                {error, Reason} ->
                    atomics:put(Tried, 2, 0),
                    {error, [
                        "the broker at ",
                        nats_gateway_address:format({Host, Port}),
                        " cannot be reached: ",
                        why(Reason)
                    ]}
            end
    end.

why(Reason) when is_atom(Reason) -> inet:format_error(Reason);
why(Reason) -> io_lib:format("~0p", [Reason]).
