%% What this gateway knows of the keys of its key/value store: which revisions their values have, and
%% who is writing them.
%%
%% A value that a gateway has written carries its revision. MQTT has none for the values of MQTT
%% clients: such a value gets one when the gateway sees it, and keeps it as long as the value stays the
%% same and this process lives. Revisions are microseconds, so they grow over restarts as well.
%%
%% A write holds the lock of its topic. Locks are given in the order in which they were asked for.
-module(nats_gateway_mqtt_revisions).

-behaviour(gen_server).

-export([start_link/0]).
-export([of_value/2]).
-export([seen/3]).
-export([locked/2]).
-export([init/1, handle_call/3, handle_cast/2, handle_info/2]).

-type digest() :: integer().

-record(state, {
    %% who has the lock, and who waits, first come first
    locks = #{} :: #{Topic :: binary() => {Owner :: reference(), queue:queue({gen_server:from(), reference()})}}
}).

%% More keys than anybody has; then all revisions of MQTT clients' values are new ones.
-define(MAX_KNOWN, 2000000).

-spec start_link() -> {ok, pid()}.
start_link() -> gen_server:start_link({local, ?MODULE}, ?MODULE, [], []).

%% The revision of a value that does not carry one. All who see the same value get the same revision.
%% So a device that writes the same value once more does not change the revision.
-spec of_value(Topic :: binary(), digest()) -> pos_integer().
of_value(Topic, Digest) ->
    case ets:lookup(?MODULE, Topic) of
        [{_, Digest, Revision}] -> Revision;
        _ -> gen_server:call(?MODULE, {value, Topic, Digest}, infinity)
    end.

%% A gateway has written the value with this revision.
-spec seen(Topic :: binary(), digest(), Revision :: pos_integer()) -> ok.
seen(Topic, Digest, Revision) ->
    _ = ets:info(?MODULE, size) >= ?MAX_KNOWN andalso ets:delete_all_objects(?MODULE),
    true = ets:insert(?MODULE, {Topic, Digest, Revision}),
    ok.

%% Calls the function while nobody else of this gateway writes the topic.
-spec locked(Topic :: binary(), fun(() -> Result)) -> Result.
locked(Topic, Fun) ->
    Lock = gen_server:call(?MODULE, {lock, Topic}, infinity),
    try
        Fun()
    after
        gen_server:cast(?MODULE, {unlock, Topic, Lock})
    end.

%% -------------------------------------------------------------------------------------------

init([]) ->
    ?MODULE = ets:new(?MODULE, [
        named_table, public, set, {read_concurrency, true}, {write_concurrency, true}
    ]),
    {ok, #state{}}.

handle_call({value, Topic, Digest}, _, State) ->
    case ets:lookup(?MODULE, Topic) of
        [{_, Digest, Revision}] -> {reply, Revision, State};
        [{_, _, Earlier}] -> {reply, value(Topic, Digest, Earlier), State};
        [] -> {reply, value(Topic, Digest, 0), State}
    end;
handle_call({lock, Topic}, From = {Pid, _}, State = #state{locks = Locks}) ->
    Lock = monitor(process, Pid),
    case Locks of
        #{Topic := {Owner, Waiting}} ->
            {noreply, State#state{locks = Locks#{Topic := {Owner, queue:in({From, Lock}, Waiting)}}}};
        #{} ->
            {reply, Lock, State#state{locks = Locks#{Topic => {Lock, queue:new()}}}}
    end.

handle_cast({unlock, Topic, Lock}, State) ->
    true = demonitor(Lock, [flush]),
    {noreply, release(Topic, Lock, State)}.

handle_info({'DOWN', Lock, process, _, _}, State = #state{locks = Locks}) ->
    case [Topic || {Topic, {Owner, _}} <- maps:to_list(Locks), Owner =:= Lock] of
        [Topic] ->
            {noreply, release(Topic, Lock, State)};
        [] ->
            NLocks = maps:map(
                fun(_, {Owner, Waiting}) ->
                    {Owner, queue:filter(fun({_, Other}) -> Other =/= Lock end, Waiting)}
                end,
                Locks
            ),
            {noreply, State#state{locks = NLocks}}
    end;
handle_info(_, State) ->
    {noreply, State}.

value(Topic, Digest, Earlier) ->
    Revision = max(erlang:system_time(microsecond), Earlier + 1),
    ok = seen(Topic, Digest, Revision),
    Revision.

release(Topic, Lock, State = #state{locks = Locks}) ->
    case Locks of
        #{Topic := {Lock, Waiting}} ->
            case queue:out(Waiting) of
                {{value, {From, Next}}, Rest} ->
                    ok = gen_server:reply(From, Next),
                    State#state{locks = Locks#{Topic := {Next, Rest}}};
                {empty, _} ->
                    State#state{locks = maps:remove(Topic, Locks)}
            end;
        #{} ->
            State
    end.
