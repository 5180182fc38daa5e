%% The rows of the connected clients, the rows of the clients that left last, and the totals of all
%% clients, for the monitoring endpoints. Nothing is kept unless a process of this module runs.
%%
%% Each connection writes its own row, at most about once a second (nats_gateway_report_times). So
%% nobody has to ask thousands of processes.
-module(nats_gateway_census).

-behaviour(gen_server).

-export([start_link/0]).
-export([is_on/0]).
-export([enter/3]).
-export([report/1]).
-export([leave/2]).
-export([open/0]).
-export([closed/0]).
-export([totals/0]).
-export([forget/0]).
-export([init/1, handle_call/3, handle_cast/2]).

-include("nats_gateway_census.hrl").

-export_type([figures/0]).

%% Of one connection since it began, but for `subscriptions' and `pending', which are those of now.
-type figures() :: #{
    messages_received | messages_sent | messages_unroutable | octets_received | octets_sent
    | subscriptions | pending => non_neg_integer()
}.

%% The number of ended connections that are kept.
-define(MAX_CLOSED, 1000).

-define(OPEN, ?MODULE).
-define(CLOSED, nats_gateway_census_closed).
-define(NUMBER, {?MODULE, number}).

%% The counters in the order of their places.
-define(COUNTERS, [
    connections, messages_received, messages_sent, messages_unroutable, octets_received, octets_sent
]).
-define(COUNTED, tl(?COUNTERS)).

-spec start_link() -> gen_server:start_ret().
start_link() -> gen_server:start_link({local, ?MODULE}, ?MODULE, [], []).

-spec is_on() -> boolean().
is_on() -> ets:whereis(?OPEN) =/= undefined.

%% The calling connection enters the census. `Before' is what it did while nobody counted, and is
%% not added to the totals.
-spec enter(Cid :: pos_integer(), Listener :: atom() | binary(), Before :: figures()) -> ok.
enter(Cid, Listener, Before) ->
    when_on(fun() ->
        Now = erlang:system_time(millisecond),
        Row = #census{
            pid = self(), cid = Cid, listener = Listener, start = Now, active = Now, figures = Before
        },
        _ = ets:insert_new(?OPEN, Row) andalso count(connections, 1),
        ok
    end).

%% What this connection has done since the last time is added to what all have done.
-spec report(figures()) -> ok.
report(Figures) ->
    when_on(fun() ->
        case ets:lookup(?OPEN, self()) of
            [Row = #census{figures = Old, active = Active}] ->
                lists:foreach(
                    fun(Kind) ->
                        count(Kind, max(0, maps:get(Kind, Figures, 0) - maps:get(Kind, Old, 0)))
                    end,
                    ?COUNTED
                ),
                NActive =
                    case maps:with([messages_received, messages_sent, subscriptions], Figures) =:=
                        maps:with([messages_received, messages_sent, subscriptions], Old)
                    of
                        true -> Active;
                        false -> erlang:system_time(millisecond)
                    end,
                true = ets:insert(?OPEN, Row#census{figures = maps:merge(Old, Figures), active = NActive}),
                ok;
            [] ->
                ok
        end
    end).

%% The calling connection has ended. `Describe' is called only if there is a census.
-spec leave(Reason :: term(), fun(() -> {figures(), nats_gateway_channel:description()})) -> ok.
leave(Reason, Describe) ->
    when_on(fun() ->
        {Figures, Description} = Describe(),
        ok = report(Figures),
        case ets:take(?OPEN, self()) of
            [Row] ->
                Word = reason(Reason),
                ended(Word),
                Number = ets:update_counter(?CLOSED, ?NUMBER, 1),
                _ = ets:delete(?CLOSED, Number - ?MAX_CLOSED),
                true = ets:insert(?CLOSED, {
                    Number, Row, Description, Word, erlang:system_time(millisecond)
                }),
                ok;
            [] ->
                ok
        end
    end).

ended(Word) ->
    Key = {ended, Word},
    _ = ets:update_counter(?CLOSED, Key, 1, {Key, 0}),
    ok.

%% Each reason gets a counter of its own, so only atoms become one: an unexpected reason may hold
%% any term.
reason({shutdown, Reason}) -> reason(Reason);
reason(Reason) when is_atom(Reason) -> Reason;
reason({denied, _}) -> permission_denied;
reason({error, Reason}) when is_atom(Reason) -> Reason;
reason(_) -> internal_error.

%% All connections that are open, in no order.
-spec open() -> [#census{}].
open() ->
    try ets:tab2list(?OPEN) of
        Rows -> [Row || Row = #census{pid = Pid} <- Rows, is_there(Pid)]
    catch
        error:badarg -> []
    end.

%% A connection that was killed has left its row behind.
is_there(Pid) ->
    is_process_alive(Pid) orelse
        begin
            _ = ets:delete(?OPEN, Pid),
            false
        end.

%% The connections that ended last, at most 1000 of them, the latest first.
-spec closed() ->
    [{#census{}, nats_gateway_channel:description(), Reason :: atom(), StopMs :: integer()}].
closed() ->
    Rows = try_list(?CLOSED),
    [
        {Row, Description, Reason, Stop}
     || {Number, Row, Description, Reason, Stop} <- lists:reverse(lists:keysort(1, Rows)), is_integer(Number)
    ].

%% The totals since the start. `ended' has the number of ended connections for each reason. The
%% totals may be a second behind the connections.
-spec totals() -> #{ended := #{atom() => pos_integer()}, atom() => non_neg_integer() | map()}.
totals() ->
    Counters = persistent_term:get(?MODULE, none),
    Counted = maps:from_list([
        {Kind, value(Place, Counters)}
     || {Place, Kind} <- lists:enumerate(?COUNTERS)
    ]),
    Counted#{ended => maps:from_list([{Reason, N} || {{ended, Reason}, N} <- try_list(?CLOSED)])}.

%% Erases the counters, which outlive the process.
-spec forget() -> ok.
forget() ->
    _ = persistent_term:erase(?MODULE),
    ok.

value(_, none) -> 0;
value(Place, Counters) -> counters:get(Counters, Place).

try_list(Table) ->
    try
        ets:tab2list(Table)
    catch
        error:badarg -> []
    end.

count(Kind, Number) -> counters:add(persistent_term:get(?MODULE), place(Kind), Number).

place(connections) -> 1;
place(messages_received) -> 2;
place(messages_sent) -> 3;
place(messages_unroutable) -> 4;
place(octets_received) -> 5;
place(octets_sent) -> 6.

%% The process may end at any time, and its tables end with it.
when_on(Fun) ->
    try is_on() andalso Fun() of
        _ -> ok
    catch
        error:badarg -> ok
    end.

init([]) ->
    %% The counters of an earlier process go on, because a total must not fall.
    case persistent_term:get(?MODULE, none) of
        none -> persistent_term:put(?MODULE, counters:new(length(?COUNTERS), [write_concurrency]));
        _ -> ok
    end,
    ?CLOSED = ets:new(?CLOSED, [named_table, public, {write_concurrency, true}]),
    true = ets:insert(?CLOSED, {?NUMBER, 0}),
    ?OPEN = ets:new(?OPEN, [named_table, public, {keypos, #census.pid}, {write_concurrency, true}]),
    {ok, []}.

handle_call(_, _, State) -> {reply, ignored, State}.

handle_cast(_, State) -> {noreply, State}.
