%% The clients that are here, those that were here last, and what all have sent and got: for who
%% watches the gateway. Without a process of this module nothing is kept.
%%
%% Each connection writes its own row, at most once a second or so (nats_gateway_report_times), so that
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

%% Connections that have ended are kept, up to so many.
-define(MAX_CLOSED, 1000).

-define(OPEN, ?MODULE).
-define(CLOSED, nats_gateway_census_closed).
-define(NUMBER, {?MODULE, number}).

%% The places of the counters.
-define(COUNTERS, [
    connections, messages_received, messages_sent, messages_unroutable, octets_received, octets_sent
]).
-define(COUNTED, tl(?COUNTERS)).

-spec start_link() -> gen_server:start_ret().
start_link() -> gen_server:start_link({local, ?MODULE}, ?MODULE, [], []).

-spec is_on() -> boolean().
is_on() -> ets:whereis(?OPEN) =/= undefined.

%% This connection is there, from now on. What it did before, when nobody counted, is not in the totals.
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

%% This connection has ended. What it was is asked for only if somebody wants to know.
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

%% Only the words of nats_gateway_ending are few.
reason({shutdown, Reason}) -> reason(Reason);
reason(Reason) when is_atom(Reason) -> Reason;
reason({denied, _}) -> permission_denied;
reason({error, Reason}) when is_atom(Reason) -> Reason;
reason(_) -> internal_error.

%% All connections, in no order.
-spec open() -> [#census{}].
open() ->
    try ets:tab2list(?OPEN) of
        Rows -> [Row || Row = #census{pid = Pid} <- Rows, is_there(Pid)]
    catch
        error:badarg -> []
    end.

%% One that was killed could not say so.
is_there(Pid) ->
    is_process_alive(Pid) orelse
        begin
            _ = ets:delete(?OPEN, Pid),
            false
        end.

%% Those that ended, up to 1000, the latest first.
-spec closed() ->
    [{#census{}, nats_gateway_channel:description(), Reason :: atom(), StopMs :: integer()}].
closed() ->
    Rows = try_list(?CLOSED),
    [
        {Row, Description, Reason, Stop}
     || {Number, Row, Description, Reason, Stop} <- lists:reverse(lists:keysort(1, Rows)), is_integer(Number)
    ].

%% Since the start; `ended': how often which reason. Figures of connections may be a second late.
-spec totals() -> #{ended := #{atom() => pos_integer()}, atom() => non_neg_integer() | map()}.
totals() ->
    Counters = persistent_term:get(?MODULE, none),
    Counted = maps:from_list([
        {Kind, value(Place, Counters)}
     || {Place, Kind} <- lists:enumerate(?COUNTERS)
    ]),
    Counted#{ended => maps:from_list([{Reason, N} || {{ended, Reason}, N} <- try_list(?CLOSED)])}.

%% When the process is gone.
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

%% It may end at any time.
when_on(Fun) ->
    try is_on() andalso Fun() of
        _ -> ok
    catch
        error:badarg -> ok
    end.

init([]) ->
    %% Those of a process before this one go on.
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
