%% Which keys a watcher is still to be told of, in the order of their revisions.
%%
%% A key is in the queue once, with its latest revision. So a slow watcher costs no more than the
%% names of the keys, however often they change: their values are read when it is their turn. The
%% tables belong to the process that made them.
-module(nats_gateway_kv_queue).

-export([new/0]).
-export([add/4]).
-export([pass/3]).
-export([take/2]).
-export([size/1]).
-export([settle/1]).

-export_type([queue/0, entry/0]).

-record(queue, {
    %% {{Revision, Topic}, What}
    order :: ets:table(),
    %% {Topic, Revision, queued | sent}
    latest :: ets:table(),
    %% whether what was sent needs to be remembered
    settled = false :: boolean()
}).

-opaque queue() :: #queue{}.

%% `What' is what is known without reading the value.
-type entry() :: {Revision :: pos_integer(), Topic :: binary(), What :: term()}.

-spec new() -> queue().
new() ->
    #queue{order = ets:new(?MODULE, [ordered_set, private]), latest = ets:new(?MODULE, [set, private])}.

%% A key has this revision now. The same or a later one may be known already: a change is seen by
%% the first look at all keys, and may still be on its way to the watcher as a message.
-spec add(Revision :: pos_integer(), Topic :: binary(), What :: term(), queue()) -> new | known.
add(Revision, Topic, What, Queue = #queue{order = Order, latest = Latest}) ->
    case is_new(Revision, Topic, Queue) of
        false ->
            known;
        Earlier ->
            _ = Earlier =/= true andalso ets:delete(Order, {Earlier, Topic}),
            true = ets:insert(Order, {{Revision, Topic}, What}),
            true = ets:insert(Latest, {Topic, Revision, queued}),
            new
    end.

%% The same for a change that is sent at once. The queue is empty.
-spec pass(Revision :: pos_integer(), Topic :: binary(), queue()) -> new | known.
pass(Revision, Topic, Queue = #queue{latest = Latest, settled = Settled}) ->
    case is_new(Revision, Topic, Queue) of
        false ->
            known;
        _ ->
            _ = Settled orelse ets:insert(Latest, {Topic, Revision, sent}),
            new
    end.

%% Returns the earlier revision if it is still in the queue.
is_new(Revision, Topic, #queue{latest = Latest}) ->
    case ets:lookup(Latest, Topic) of
        [{_, Known, _}] when Known >= Revision -> false;
        [{_, Earlier, queued}] -> Earlier;
        _ -> true
    end.

-spec take(Most :: pos_integer(), queue()) -> [entry()].
take(0, _) ->
    [];
take(N, Queue = #queue{order = Order}) ->
    case ets:first(Order) of
        '$end_of_table' ->
            [];
        Key = {Revision, Topic} ->
            [{_, What}] = ets:take(Order, Key),
            ok = taken(Topic, Queue),
            [{Revision, Topic, What} | take(N - 1, Queue)]
    end.

taken(Topic, #queue{latest = Latest, settled = true}) ->
    true = ets:delete(Latest, Topic),
    ok;
taken(Topic, #queue{latest = Latest}) ->
    true = ets:update_element(Latest, Topic, {3, sent}),
    ok.

-spec size(queue()) -> non_neg_integer().
size(#queue{order = Order}) -> ets:info(Order, size).

%% By now no message of a change is on its way that the first look has seen. So nothing that was sent
%% needs to be remembered any more.
-spec settle(queue()) -> queue().
settle(Queue = #queue{latest = Latest}) ->
    _ = ets:match_delete(Latest, {'_', '_', sent}),
    Queue#queue{settled = true}.
