%% The subscriptions of one client: which sids a delivery of the broker goes to.
%%
%% The broker knows one subscription per key (share name and topic filter), NATS knows one per sid.
%% A delivery of a key goes to every plain sid of that key, or to one member of the queue group.
-module(nats_gateway_subscriptions).

-export([new/0]).
-export([count/1]).
-export([member/2]).
-export([add/5]).
-export([remove/2]).
-export([limit/3]).
-export([unsubscribed/2]).
-export([reject/2]).
-export([deliver/3]).
-export([plain_sid/2]).
-export([keys/1]).
-export([list/1]).

-export_type([subscriptions/0, sid/0, subscription/0]).

-type sid() :: binary().
-type key() :: nats_gateway_host:key().
-type subscription() :: #{
    sid := sid(),
    subject := binary(),
    queue_group := undefined | binary(),
    key := key(),
    delivered := non_neg_integer(),
    max := infinity | pos_integer()
}.

%% MQTT's `foo/#' matches `foo', NATS's `foo.>' does not. What a topic must have beyond its parent:
-type beyond() ::
    any
    %% more bytes than this: no `+' in the filter, so the parent has a fixed size
    | {bytes, non_neg_integer()}
    %% more levels than this
    | {levels, non_neg_integer()}.

-record(sub, {
    subject :: binary(),
    queue_group :: undefined | binary(),
    key :: key(),
    %% plain: the key's count when the sid was added, so that a delivery to a key with many
    %% sids moves one counter; queue member: its own deliveries, negated
    offset :: integer(),
    max = infinity :: infinity | pos_integer()
}).

-record(entry, {
    %% empty only while the last sids are leaving
    sids :: [sid()],
    %% unsubscribed by the client, but not yet by the broker: what it has sent already is still
    %% theirs, and to a queue group it has assigned it to them alone
    leaving = [] :: [sid()],
    beyond :: beyond(),
    delivered = 0 :: non_neg_integer(),
    limited = false :: boolean()
}).

-record(subscriptions, {
    subs = #{} :: #{sid() => #sub{}},
    entries = #{} :: #{key() => #entry{}},
    %% share name => its keys on this connection, ordered
    groups = #{} :: #{binary() => [key(), ...]}
}).

-opaque subscriptions() :: #subscriptions{}.

-spec new() -> subscriptions().
new() -> #subscriptions{}.

-spec count(subscriptions()) -> non_neg_integer().
count(#subscriptions{subs = Subs}) -> map_size(Subs).

-spec member(sid(), subscriptions()) -> boolean().
member(Sid, #subscriptions{subs = Subs}) -> is_map_key(Sid, Subs).

%% The sid must be free. `new_key': the broker has to be asked for this key.
-spec add(sid(), binary(), undefined | binary(), key(), subscriptions()) ->
    {new_key | known_key, subscriptions()}.
add(Sid, Subject, QueueGroup, Key, S = #subscriptions{subs = Subs, entries = Entries}) ->
    case Entries of
        #{Key := Entry = #entry{sids = Sids, delivered = Delivered}} ->
            Sub = sub(Subject, QueueGroup, Key, Delivered),
            Known =
                case Sids of
                    [] -> new_key;
                    _ -> known_key
                end,
            {Known, S#subscriptions{
                subs = Subs#{Sid => Sub},
                entries = Entries#{Key := Entry#entry{sids = [Sid | Sids]}}
            }};
        #{} ->
            Sub = sub(Subject, QueueGroup, Key, 0),
            Entry = #entry{sids = [Sid], beyond = beyond(Key)},
            {new_key, S#subscriptions{
                subs = Subs#{Sid => Sub},
                entries = Entries#{Key => Entry},
                groups = join_group(Key, S#subscriptions.groups)
            }}
    end.

sub(Subject, QueueGroup = undefined, Key, Delivered) ->
    #sub{subject = Subject, queue_group = QueueGroup, key = Key, offset = Delivered};
sub(Subject, QueueGroup, Key, _) ->
    #sub{subject = Subject, queue_group = QueueGroup, key = Key, offset = 0}.

%% Keys that no sid uses any more are returned: the broker is to be told.
-spec remove(sid(), subscriptions()) -> {[key()], subscriptions()}.
remove(Sid, S = #subscriptions{subs = Subs}) ->
    case maps:take(Sid, Subs) of
        error -> {[], S};
        {Sub, NSubs} -> remove(Sid, Sub, S#subscriptions{subs = NSubs})
    end.

remove(Sid, #sub{key = Key}, S = #subscriptions{entries = Entries}) ->
    Entry = #entry{sids = Sids, leaving = Leaving} = maps:get(Key, Entries),
    case lists:delete(Sid, Sids) of
        [] when Leaving =:= [] ->
            {[Key], S#subscriptions{
                entries = maps:remove(Key, Entries),
                groups = leave_group(Key, S#subscriptions.groups)
            }};
        [] ->
            {[Key], S#subscriptions{entries = Entries#{Key := Entry#entry{sids = []}}}};
        NSids ->
            {[], S#subscriptions{entries = Entries#{Key := Entry#entry{sids = NSids}}}}
    end.

%% UNSUB at once. The sid is free, but as the last of its key it still gets what comes before the
%% broker has confirmed; not so with a max, which is never exceeded.
leave(Sid, Sub = #sub{key = Key, max = infinity}, S = #subscriptions{entries = Entries}) ->
    case Entries of
        #{Key := Entry = #entry{sids = [Sid], leaving = Leaving}} ->
            NEntry = Entry#entry{sids = [], leaving = [Sid | Leaving]},
            {[Key], S#subscriptions{entries = Entries#{Key := NEntry}}};
        #{} ->
            remove(Sid, Sub, S)
    end;
leave(Sid, Sub, S) ->
    remove(Sid, Sub, S).

%% The broker has confirmed that nothing more comes for the key.
-spec unsubscribed(key(), subscriptions()) -> subscriptions().
unsubscribed(Key, S = #subscriptions{entries = Entries, groups = Groups}) ->
    case Entries of
        #{Key := #entry{sids = []}} ->
            S#subscriptions{
                entries = maps:remove(Key, Entries), groups = leave_group(Key, Groups)
            };
        #{Key := Entry} ->
            S#subscriptions{entries = Entries#{Key := Entry#entry{leaving = []}}};
        #{} ->
            S
    end.

%% UNSUB with a max, counted from the SUB; 0, or reached already, removes at once.
-spec limit(sid(), non_neg_integer(), subscriptions()) -> {[key()], subscriptions()}.
limit(Sid, Max, S = #subscriptions{subs = Subs, entries = Entries}) ->
    case Subs of
        #{Sid := Sub = #sub{key = Key}} ->
            Entry = maps:get(Key, Entries),
            case delivered(Sub, Entry) >= Max of
                true ->
                    leave(Sid, Sub, S#subscriptions{subs = maps:remove(Sid, Subs)});
                false ->
                    {[], S#subscriptions{
                        subs = Subs#{Sid := Sub#sub{max = Max}},
                        entries = Entries#{Key := Entry#entry{limited = true}}
                    }}
            end;
        #{} ->
            {[], S}
    end.

delivered(#sub{queue_group = undefined, offset = Offset}, #entry{delivered = Delivered}) ->
    Delivered - Offset;
delivered(#sub{offset = Offset}, _) ->
    -Offset.

%% The broker refused the key: its sids are gone and free again.
-spec reject(key(), subscriptions()) -> {[subscription()], subscriptions()}.
reject(Key, S = #subscriptions{entries = Entries}) ->
    case Entries of
        #{Key := #entry{sids = Sids}} ->
            Rejected = [describe(Sid, S) || Sid <- Sids],
            {_, NS} = remove_all(Sids, S),
            {Rejected, NS};
        #{} ->
            {[], S}
    end.

remove_all(Sids, S) ->
    lists:foldl(
        fun(Sid, {Keys, Acc}) ->
            {Unused, NAcc} = remove(Sid, Acc),
            {Unused ++ Keys, NAcc}
        end,
        {[], S},
        Sids
    ).

%% The sids that get this delivery of the broker, and the keys that became unused by it.
-spec deliver(key(), Topic :: binary(), subscriptions()) -> {[sid()], [key()], subscriptions()}.
deliver(Key = {undefined, _}, Topic, S = #subscriptions{entries = Entries}) ->
    case Entries of
        #{Key := #entry{sids = [], leaving = Leaving, beyond = Beyond}} ->
            case is_beyond(Topic, Beyond) of
                true -> {Leaving, [], S};
                false -> {[], [], S}
            end;
        #{Key := Entry = #entry{sids = Sids, beyond = Beyond, delivered = N, limited = Limited}} ->
            case is_beyond(Topic, Beyond) of
                false ->
                    {[], [], S};
                true ->
                    NEntry = Entry#entry{delivered = N + 1},
                    NS = S#subscriptions{entries = Entries#{Key := NEntry}},
                    case Limited of
                        false ->
                            {Sids, [], NS};
                        true ->
                            {Unused, NNS} = remove_all(full(Sids, NEntry, NS), NS),
                            {Sids, Unused, NNS}
                    end
            end;
        #{} ->
            {[], [], S}
    end;
deliver(Key = {Share, _}, Topic, S = #subscriptions{groups = Groups}) ->
    case Groups of
        #{Share := [Key]} ->
            to_member([Key], Topic, S);
        #{Share := Keys} ->
            %% For NATS all filters of a queue name are one group: a message that reaches this
            %% connection once per filter goes to one member only. The copy of the first
            %% matching filter counts, in the same order on every connection. So of the copies
            %% that the broker spreads over the connections the one of the smallest filter is
            %% always taken, and none is lost.
            case [K || K = {_, Filter} <- Keys, nats_gateway_nif:topic_matches(Filter, Topic)] of
                Matching = [Key | _] -> to_member(Matching, Topic, S);
                _ -> {[], [], S}
            end;
        #{} ->
            {[], [], S}
    end.

%% One of the members takes its turn, and goes to the end of the line.
to_member(Keys, Topic, S = #subscriptions{entries = Entries}) ->
    case [K || K <- Keys, is_beyond(Topic, (maps:get(K, Entries))#entry.beyond)] of
        [] ->
            {[], [], S};
        Candidates ->
            Key = least_served(Candidates, Entries),
            case Entries of
                #{Key := #entry{sids = [], leaving = [Sid | _]}} -> {[Sid], [], S};
                #{Key := Entry} -> to_sid(Key, Entry, S)
            end
    end.

to_sid(Key, Entry = #entry{sids = [Sid | Others], delivered = N}, S) ->
    #subscriptions{subs = Subs, entries = Entries} = S,
    Sub = #sub{offset = Offset, max = Max} = maps:get(Sid, Subs),
    NS = S#subscriptions{
        subs = Subs#{Sid := Sub#sub{offset = Offset - 1}},
        entries = Entries#{Key := Entry#entry{sids = Others ++ [Sid], delivered = N + 1}}
    },
    case 1 - Offset >= Max of
        true ->
            {Unused, NNS} = remove(Sid, NS),
            {[Sid], Unused, NNS};
        false ->
            {[Sid], [], NS}
    end.

%% A key whose sids are leaving is asked only where no other matches.
least_served([Key], _) ->
    Key;
least_served(Keys, Entries) ->
    {_, _, Key} = lists:min([
        {Sids =:= [], Delivered, Key}
     || Key <- Keys, #entry{sids = Sids, delivered = Delivered} <- [maps:get(Key, Entries)]
    ]),
    Key.

full(Sids, Entry, #subscriptions{subs = Subs}) ->
    [
        Sid
     || Sid <- Sids,
        Sub <- [maps:get(Sid, Subs)],
        delivered(Sub, Entry) >= Sub#sub.max
    ].

%% The sid that gets the 503 of a request: a plain subscription that matches the reply subject.
-spec plain_sid(Subject :: binary(), subscriptions()) -> undefined | sid().
plain_sid(Subject, #subscriptions{subs = Subs}) ->
    plain_sid_next(maps:next(maps:iterator(Subs)), Subject).

plain_sid_next(none, _) ->
    undefined;
plain_sid_next({Sid, #sub{queue_group = undefined, subject = Pattern}, Next}, Subject) ->
    case Pattern =:= Subject orelse nats_gateway_nif:subject_matches(Pattern, Subject) of
        true -> Sid;
        false -> plain_sid_next(maps:next(Next), Subject)
    end;
plain_sid_next({_, _, Next}, Subject) ->
    plain_sid_next(maps:next(Next), Subject).

-spec keys(subscriptions()) -> [key()].
keys(#subscriptions{entries = Entries}) ->
    [Key || {Key, #entry{sids = [_ | _]}} <- maps:to_list(Entries)].

-spec list(subscriptions()) -> [subscription()].
list(S = #subscriptions{subs = Subs}) -> [describe(Sid, S) || Sid <- maps:keys(Subs)].

describe(Sid, #subscriptions{subs = Subs, entries = Entries}) ->
    Sub = #sub{subject = Subject, queue_group = QueueGroup, key = Key, max = Max} =
        maps:get(Sid, Subs),
    #{
        sid => Sid,
        subject => Subject,
        queue_group => QueueGroup,
        key => Key,
        delivered => delivered(Sub, maps:get(Key, Entries)),
        max => Max
    }.

join_group({undefined, _}, Groups) ->
    Groups;
join_group(Key = {Share, _}, Groups) ->
    maps:update_with(Share, fun(Keys) -> ordsets:add_element(Key, Keys) end, [Key], Groups).

leave_group({undefined, _}, Groups) ->
    Groups;
leave_group(Key = {Share, _}, Groups) ->
    case ordsets:del_element(Key, maps:get(Share, Groups)) of
        [] -> maps:remove(Share, Groups);
        Keys -> Groups#{Share := Keys}
    end.

beyond({_, Filter}) ->
    ParentSize = byte_size(Filter) - 2,
    case Filter of
        <<Parent:ParentSize/binary, "/#">> when ParentSize >= 0 ->
            case binary:match(Parent, <<"+">>) of
                nomatch -> {bytes, ParentSize};
                _ -> {levels, levels(Parent)}
            end;
        _ ->
            any
    end.

is_beyond(_, any) -> true;
is_beyond(Topic, {bytes, N}) -> byte_size(Topic) > N;
is_beyond(Topic, {levels, N}) -> levels(Topic) > N.

levels(Topic) -> length(binary:matches(Topic, <<"/">>)) + 1.
