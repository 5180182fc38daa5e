%% Presence of the clients in EMQX (nats_gateway_presence): the messages are published here, by the
%% client's own process, as long as there is one.
%%
%% A process that was killed, and a node that is gone, publish nothing. So there is a process of this
%% module on each node of a cluster. The clients are in a scope of `pg', with what is to be published
%% when they are gone. All processes of this module monitor all clients; for the clients of a node
%% that is lost, the one on the first of the nodes that are left publishes.
-module(nats_gateway_emqx_presence).

-behaviour(gen_server).

-export([change/1]).
-export([connected/3]).
-export([disconnected/2]).
-export([start_link/0]).
-export([init/1, handle_call/3, handle_cast/2, handle_info/2]).

-export_type([presence/0]).

%% What a client's process keeps.
-type presence() :: none | group().

%% The name of a group of pg.
-type group() :: {gone, gone()}.

%% The message for a client that is gone.
-type gone() :: #{
    topic := binary(),
    payload := binary(),
    qos := 0 | 1,
    retain := boolean(),
    from := binary()
}.

-record(client, {
    pid :: pid(),
    gone :: gone(),
    %% milliseconds of monotonic time
    left = no :: no | integer()
}).

-record(state, {
    scope :: reference(),
    clients = #{} :: #{Monitor :: reference() => #client{}},
    monitors = #{} :: #{{pid(), group()} => Monitor :: reference()},
    %% how many clients have a topic
    topics = #{} :: #{Topic :: binary() => pos_integer()},
    %% clients that could not publish themselves
    lost = [] :: [{here | node(), gone()}]
}).

-define(SCOPE, ?MODULE).
%% The loss of a node and of all its processes are several messages, in any order.
-define(SETTLE_MS, 1000).
%% A client that has left its group so long before its node was lost had published itself.
-define(SAME_TIME_MS, 100).
%% A client of another node that has left its group is forgotten after this time.
-define(FORGET_MS, 5000).

%% Whether there is presence, from now on. The processes stay when there is none any more.
-spec change(nats_gateway_presence:settings()) -> ok.
change(off) ->
    ok;
change(#{}) ->
    ok = nats_gateway_monitor:start_child(#{id => ?SCOPE, start => {pg, start_link, [?SCOPE]}}),
    nats_gateway_monitor:start_child(#{id => nats_gateway_emqx_presence_watcher, start => {?MODULE, start_link, []}}).

%% The calling process has logged its client in. EMQX's authorization is not asked: the operator
%% chooses the topic, and not the client.
-spec connected(nats_gateway_host:client(), nats_gateway_host:session(), Headers :: map()) -> presence().
connected(Client, Session = #{clientid := ClientId}, Headers) ->
    MaxLevels = nats_gateway_emqx_compat:max_topic_levels(),
    case nats_gateway_presence:messages(Client, Session, MaxLevels) of
        none ->
            none;
        Messages = #{topic := Topic, qos := QoS, retain := Retain} ->
            #{connected := Connected, disconnected := Disconnected} = Messages,
            Gone = #{
                topic => Topic, payload => Disconnected, qos => QoS, retain => Retain, from => ClientId
            },
            Group = {gone, Gone},
            ok = in_scope(fun() -> pg:join(?SCOPE, Group, self()) end),
            ok = publish(Gone#{payload := Connected}, Headers),
            Group
    end.

%% Its client is gone, or logs in again.
-spec disconnected(presence(), Headers :: map()) -> ok.
disconnected(none, _) ->
    ok;
disconnected(Group = {gone, Gone}, Headers) ->
    ok = publish(Gone, Headers),
    in_scope(fun() -> pg:leave(?SCOPE, Group, self()) end).

publish(Message, Headers) ->
    #{topic := Topic, payload := Payload, qos := QoS, retain := Retain, from := From} = Message,
    _ = emqx_broker:safe_publish(
        emqx_message:make(From, QoS, Topic, Payload, #{retain => Retain}, Headers)
    ),
    ok.

%% The scope ends before the last clients, and while it is started again nobody watches.
in_scope(Fun) ->
    try Fun() of
        _ -> ok
    catch
        exit:_ -> ok
    end.

%% -------------------------------------------------------------------------------------------

-spec start_link() -> gen_server:start_ret().
start_link() -> gen_server:start_link({local, nats_gateway_emqx_presence_watcher}, ?MODULE, [], []).

init([]) ->
    %% Without it, nobody would find this process.
    true = link(whereis(?SCOPE)),
    {Scope, Groups} = pg:monitor_scope(?SCOPE),
    _ = spawn_link(fun watch/0),
    {ok, maps:fold(fun join/3, #state{scope = Scope}, Groups)}.

%% The pg of OTP 25 crashes at the end of a process that monitors the scope and is in a group.
watch() ->
    ok = pg:join(?SCOPE, watchers, self()),
    receive
        stop -> ok
    end.

handle_call(_, _, State) -> {reply, ignored, State}.

handle_cast(_, State) -> {noreply, State}.

handle_info({Scope, join, Group, Pids}, State = #state{scope = Scope}) ->
    {noreply, join(Group, Pids, State)};
handle_info({Scope, leave, Group, Pids}, State = #state{scope = Scope}) ->
    {noreply, lists:foldl(fun(Pid, Acc) -> left(Pid, Group, Acc) end, State, Pids)};
handle_info({'DOWN', Monitor, process, Pid, Reason}, State = #state{clients = Clients}) ->
    case Clients of
        #{Monitor := Client} -> {noreply, ended(Reason, node(Pid), Client, forget(Monitor, State))};
        #{} -> {noreply, State}
    end;
handle_info({forget, Monitor}, State) ->
    {noreply, forget(Monitor, State)};
handle_info(settle, State = #state{lost = Lost, topics = Topics}) ->
    ok = settle(lists:reverse(Lost), Topics),
    {noreply, State#state{lost = []}};
handle_info(_, State) ->
    {noreply, State}.

join(Group = {gone, Gone = #{topic := Topic}}, Pids, State) ->
    lists:foldl(
        fun(Pid, Acc = #state{clients = Clients, monitors = Monitors, topics = Topics}) ->
            case Monitors of
                #{{Pid, Group} := _} ->
                    Acc;
                #{} ->
                    Monitor = monitor(process, Pid),
                    Acc#state{
                        clients = Clients#{Monitor => #client{pid = Pid, gone = Gone}},
                        monitors = Monitors#{{Pid, Group} => Monitor},
                        topics = maps:update_with(Topic, fun(N) -> N + 1 end, 1, Topics)
                    }
            end
        end,
        State,
        Pids
    );
join(_, _, State) ->
    State.

%% `pg' says the same of a process that is dead. One of this node that lives has left by itself. One
%% of another node may be lost with it.
left(Pid, Group, State = #state{clients = Clients, monitors = Monitors}) ->
    case Monitors of
        #{{Pid, Group} := Monitor} when node(Pid) =:= node() ->
            case is_process_alive(Pid) of
                true -> forget(Monitor, State);
                false -> State
            end;
        #{{Pid, Group} := Monitor} ->
            #{Monitor := Client} = Clients,
            _ = erlang:send_after(?FORGET_MS, self(), {forget, Monitor}),
            State#state{clients = Clients#{Monitor := Client#client{left = now_ms()}}};
        #{} ->
            State
    end.

forget(Monitor, State = #state{clients = Clients, monitors = Monitors, topics = Topics}) ->
    case maps:take(Monitor, Clients) of
        {#client{pid = Pid, gone = Gone = #{topic := Topic}}, Left} ->
            true = demonitor(Monitor, [flush]),
            State#state{
                clients = Left,
                monitors = maps:remove({Pid, {gone, Gone}}, Monitors),
                topics =
                    case Topics of
                        #{Topic := 1} -> maps:remove(Topic, Topics);
                        #{Topic := N} -> Topics#{Topic := N - 1}
                    end
            };
        error ->
            State
    end.

%% Only a process that was killed has not published itself. Why one has ended that was gone before it
%% was monitored is not known: what is said twice is better than what is never said.
ended(noconnection, Node, #client{gone = Gone, left = Left}, State) ->
    case Left =:= no orelse now_ms() - Left =< ?SAME_TIME_MS of
        true -> lose(Node, Gone, State);
        false -> State
    end;
ended(Reason, Node, #client{gone = Gone}, State) when
    Node =:= node(), Reason =:= killed orelse Reason =:= noproc
->
    lose(here, Gone, State);
ended(_, _, _, State) ->
    State.

lose(Where, Gone, State = #state{lost = Lost}) ->
    _ = Lost =:= [] andalso erlang:send_after(?SETTLE_MS, self(), settle),
    State#state{lost = [{Where, Gone} | Lost]}.

%% A client that has come back meanwhile, here or elsewhere, is not gone.
settle(Lost, Topics) ->
    Alive = [node() | nodes()],
    Nodes = [node(Pid) || Pid <- pg:get_members(?SCOPE, watchers)],
    IsFirst = lists:min([node() | [Node || Node <- Nodes, lists:member(Node, Alive)]]) =:= node(),
    lists:foreach(
        fun({Where, Gone = #{topic := Topic}}) ->
            (Where =:= here orelse IsFirst) andalso not is_map_key(Topic, Topics) andalso
                publish(Gone, #{})
        end,
        Lost
    ).

now_ms() -> erlang:monotonic_time(millisecond).
