%% Limits the log lines about connections that end before their login. Anybody can cause any number
%% of them, so each listener may log only some. Another line has the number of lines that were left
%% out.
-module(nats_gateway_refusals).

-behaviour(gen_server).

-export([start_link/0]).
-export([may_log/1]).
-export([init/1, handle_call/3, handle_cast/2, handle_info/2]).

-include_lib("kernel/include/logger.hrl").

%% This many lines at once, and then one line each second.
-define(AT_ONCE, 20).
-define(TICK_MS, 1000).
%% A summary of the lines that were left out is logged after this number of ticks.
-define(TICKS_OF_SUMMARY, 10).

-spec start_link() -> gen_server:start_ret().
start_link() -> gen_server:start_link({local, ?MODULE}, ?MODULE, [], []).

%% Whether one more line may be logged. If not, it is counted.
-spec may_log(Listener :: atom() | binary()) -> boolean().
may_log(Listener) ->
    try ets:update_counter(?MODULE, Listener, {2, 1}, {Listener, 0, 0}) of
        1 ->
            ok = gen_server:cast(?MODULE, begin_ticking),
            true;
        Lines when Lines =< ?AT_ONCE ->
            true;
        _ ->
            _ = ets:update_counter(?MODULE, Listener, [{2, -1}, {3, 1}]),
            false
    catch
        %% The process is being restarted, or there is none.
        error:badarg -> true
    end.

init([]) ->
    ?MODULE = ets:new(?MODULE, [named_table, public, {write_concurrency, true}]),
    {ok, idle}.

handle_call(_, _, State) -> {reply, ignored, State}.

handle_cast(begin_ticking, idle) -> {noreply, tick(1)};
handle_cast(_, State) -> {noreply, State}.

handle_info({timeout, Timer, Ticks}, Timer) ->
    IsEnd = Ticks >= ?TICKS_OF_SUMMARY,
    lists:foreach(fun(Row) -> allow_another(Row, IsEnd) end, ets:tab2list(?MODULE)),
    case ets:info(?MODULE, size) of
        0 -> {noreply, idle};
        _ when IsEnd -> {noreply, tick(1)};
        _ -> {noreply, tick(Ticks + 1)}
    end;
handle_info(_, State) ->
    {noreply, State}.

tick(Ticks) -> erlang:start_timer(?TICK_MS, self(), Ticks).

%% Lines that are counted in the meantime are kept.
allow_another({Listener, 0, 0}, _) ->
    true = ets:match_delete(?MODULE, {Listener, 0, 0});
allow_another({Listener, Lines, LeftOut}, IsEnd) ->
    Lines > 0 andalso ets:update_counter(?MODULE, Listener, {2, -1}),
    LeftOut > 0 andalso IsEnd andalso log_summary(Listener, LeftOut).

log_summary(Listener, LeftOut) ->
    _ = ets:update_counter(?MODULE, Listener, {3, -LeftOut}),
    ?LOG_WARNING(#{msg => refusals_not_logged, listener => Listener, lines => LeftOut}).
