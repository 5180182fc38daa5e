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
-export([report/2]).
-export([leave/2]).
-export([open/0]).
-export([find/1]).
-export([started/0]).
-export([closed/0]).
-export([totals/0]).
-export([login_refused/2]).
-export([refused/0]).
-export([accounts/0]).
-export([forget/0]).
-export([init/1, handle_call/3, handle_cast/2]).

-include("nats_gateway_census.hrl").

-export_type([figures/0, account_totals/0]).

%% The counts of one connection since it began. `subscriptions' and `pending' are those of now, and
%% `rtt' is the latest measurement, in nanoseconds.
-type figures() :: #{
    messages_received | messages_sent | messages_unroutable | octets_received | octets_sent
    | subscriptions | pending | rtt => non_neg_integer()
}.

%% The totals of all clients of an account, also of those that are gone.
-type account_totals() :: #{
    messages_received | messages_sent | octets_received | octets_sent | slow_consumers := non_neg_integer()
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

%% Adds the counts of the calling connection since its last report to the totals, and to those of
%% its account.
-spec report(Account :: binary(), figures()) -> ok.
report(Account, Figures) ->
    when_on(fun() ->
        case ets:lookup(?OPEN, self()) of
            [Row = #census{figures = Old, active = Active}] ->
                New = [
                    {Kind, max(0, maps:get(Kind, Figures, 0) - maps:get(Kind, Old, 0))}
                 || Kind <- ?COUNTED
                ],
                lists:foreach(fun({Kind, Number}) -> count(Kind, Number) end, New),
                ok = count_for_account(Account, New),
                NActive =
                    case maps:with([messages_received, messages_sent, subscriptions], Figures) =:=
                        maps:with([messages_received, messages_sent, subscriptions], Old)
                    of
                        true -> Active;
                        false -> erlang:system_time(millisecond)
                    end,
                true = ets:insert(?OPEN, Row#census{
                    figures = maps:merge(Old, Figures), active = NActive, account = Account
                }),
                ok;
            [] ->
                ok
        end
    end).

count_for_account(Account, New) ->
    Key = {account, Account},
    Increments = [{Place, N} || {Kind, N} <- New, Place <- place_for_account(Kind)],
    _ = ets:update_counter(?CLOSED, Key, Increments, {Key, 0, 0, 0, 0, 0}),
    ok.

place_for_account(messages_received) -> [2];
place_for_account(messages_sent) -> [3];
place_for_account(octets_received) -> [4];
place_for_account(octets_sent) -> [5];
place_for_account(slow_consumers) -> [6];
place_for_account(_) -> [].

%% The calling connection has ended. `Describe' is called only if there is a census.
-spec leave(Reason :: term(), fun(() -> {figures(), nats_gateway_channel:description()})) -> ok.
leave(Reason, Describe) ->
    when_on(fun() ->
        {Figures, Description = #{account := Account}} = Describe(),
        ok = report(Account, Figures),
        case ets:take(?OPEN, self()) of
            [Row] ->
                Word = reason(Reason),
                ok = count_up({ended, Word}),
                Word =:= slow_consumer andalso count_for_account(Account, [{slow_consumers, 1}]),
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

count_up(Key) ->
    _ = ets:update_counter(?CLOSED, Key, 1, {Key, 0}),
    ok.

%% The method and the reason are those of the log. A reason that is not an atom may hold any term.
-spec login_refused(Method :: atom(), Reason :: term()) -> ok.
login_refused(Method, Reason) when is_atom(Reason) ->
    when_on(fun() -> count_up({refused, Method, Reason}) end);
login_refused(Method, _) ->
    login_refused(Method, other).

-spec refused() -> [{Method :: atom(), Reason :: atom(), pos_integer()}].
refused() -> selected([{{{refused, '$1', '$2'}, '$3'}, [], [{{'$1', '$2', '$3'}}]}]).

%% The totals of each account that has ever had a client here.
-spec accounts() -> #{Account :: binary() => account_totals()}.
accounts() ->
    maps:from_list([
        {Account, #{
            messages_received => Received,
            messages_sent => Sent,
            octets_received => OctetsReceived,
            octets_sent => OctetsSent,
            slow_consumers => Slow
        }}
     || {{account, Account}, Received, Sent, OctetsReceived, OctetsSent, Slow} <- selected([
            {{{account, '_'}, '_', '_', '_', '_', '_'}, [], ['$_']}
        ])
    ]).

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

%% The process of one connection.
%% When the calling connection entered the census: milliseconds of the system's time.
-spec started() -> undefined | integer().
started() ->
    try
        ets:lookup_element(?OPEN, self(), #census.start)
    catch
        error:badarg -> undefined
    end.

-spec find(Cid :: pos_integer()) -> {ok, pid()} | error.
find(Cid) ->
    Row = erlang:make_tuple(record_info(size, census), '_', [
        {1, census}, {#census.pid, '$1'}, {#census.cid, Cid}
    ]),
    try ets:match(?OPEN, Row) of
        [[Pid] | _] -> {ok, Pid};
        [] -> error
    catch
        error:badarg -> error
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
    Rows = selected([{{'_', '_', '_', '_', '_'}, [], ['$_']}]),
    [
        {Row, Description, Reason, Stop}
     || {_, Row, Description, Reason, Stop} <- lists:reverse(lists:keysort(1, Rows))
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
    Ended = selected([{{{ended, '$1'}, '$2'}, [], [{{'$1', '$2'}}]}]),
    Counted#{ended => maps:from_list(Ended)}.

%% Erases the counters, which outlive the process.
-spec forget() -> ok.
forget() ->
    _ = persistent_term:erase(?MODULE),
    nats_gateway_durations:forget().

value(_, none) -> 0;
value(Place, Counters) -> counters:get(Counters, Place).

selected(MatchSpec) ->
    try
        ets:select(?CLOSED, MatchSpec)
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
    ok = nats_gateway_durations:start(),
    ?CLOSED = ets:new(?CLOSED, [named_table, public, {write_concurrency, true}]),
    true = ets:insert(?CLOSED, {?NUMBER, 0}),
    ?OPEN = ets:new(?OPEN, [named_table, public, {keypos, #census.pid}, {write_concurrency, true}]),
    {ok, []}.

handle_call(_, _, State) -> {reply, ignored, State}.

handle_cast(_, State) -> {noreply, State}.
